"""To the sockets: connections, delivery, HTTP."""

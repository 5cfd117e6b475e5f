"""`momentum-sync doctor`: checks of settings, database, network and servers, each with the command that fixes it."""

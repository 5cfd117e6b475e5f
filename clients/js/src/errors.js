// The errors of the SDK. The client continues by itself, unless the error is Ended.

/** The root of the SDK's errors. `message` is one sentence for a person. */
export class ClientError extends Error {
  name = "ClientError"; // a text: minifiers give classes other names

  /**
   * @param {string} message
   * @param {{cause?: unknown}} [options]
   */
  constructor(message, options) {
    super(message, options);
  }
}

/** The network, or the server, went away. */
export class ConnectionLost extends ClientError {
  name = "ConnectionLost";

  /**
   * @param {string} message
   * @param {number | null} [code] the close code, where there was one
   */
  constructor(message, code = null) {
    super(message);
    /** @type {number | null} */
    this.code = code;
  }
}

/** Nothing came for longer than heartbeats leave. */
export class FeedFrozen extends ClientError {
  name = "FeedFrozen";
}

/** The server did not take the connection. */
export class Rejected extends ClientError {
  name = "Rejected";

  /**
   * @param {number} status the HTTP status
   * @param {string} code for programs
   * @param {string} message
   */
  constructor(status, code, message) {
    super(`${message} (HTTP ${status}, ${code})`);
    this.status = status;
    this.code = code;
  }
}

/** The token provider failed; `cause` is what with. */
export class TokenUnavailable extends ClientError {
  name = "TokenUnavailable";
}

/** An event does not follow the one before it; the state is read anew. */
export class Gap extends ClientError {
  name = "Gap";
}

/** The server sent something that is not a message of the protocol. */
export class NotUnderstood extends ClientError {
  name = "NotUnderstood";
}

/** A message was answered with `error`. */
export class RequestFailed extends ClientError {
  name = "RequestFailed";

  /**
   * @param {string} code for programs
   * @param {string} message
   */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** The store could not be read or written; `cause` is why. The client goes on without it. */
export class StoreFailed extends ClientError {
  name = "StoreFailed";
}

/** A fetch for the cache took too long. Nothing is kept of it. */
export class FetchFailed extends ClientError {
  name = "FetchFailed";
}

/** What was asked for needs a connection, and there is none now. */
export class Offline extends ClientError {
  name = "Offline";
}

/** The client does not reconnect. */
export class Ended extends ClientError {
  name = "Ended";

  /**
   * @param {number} code the close code, or the HTTP status of the handshake
   * @param {string} reason
   */
  constructor(code, reason) {
    super(`${reason} (${code})`);
    this.code = code;
    this.reason = reason;
  }
}

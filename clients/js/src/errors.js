// The errors of the SDK. The client continues, unless the error is Ended.

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

/** The connection to the server was lost. */
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

/** Nothing was received for longer than the heartbeat interval allows. */
export class FeedFrozen extends ClientError {
  name = "FeedFrozen";
}

/** The server rejected the connection with an HTTP error. */
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

/** The token provider failed; `cause` is its error. */
export class TokenUnavailable extends ClientError {
  name = "TokenUnavailable";
}

/** An event does not follow the previous one; the client reads a new snapshot. */
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

/** The store could not be read or written; `cause` is the error. The client continues without it. */
export class StoreFailed extends ClientError {
  name = "StoreFailed";
}

/** A fetch for the cache exceeded its deadline. Nothing is cached. */
export class FetchFailed extends ClientError {
  name = "FetchFailed";
}

/** The call needs a connection, and there is none. */
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

// One connection of a client: the socket, from the handshake to its end, in the SDK's own errors.

import { ClientError, ConnectionLost, Ended, Offline, Rejected, RequestFailed } from "./errors.js";
import { verdict } from "./following.js";

const PATH = "/functions/v1/realtime-momentum-sync";
const OPEN_TIMEOUT_MS = 15_000;
const ANSWER_TIMEOUT_MS = 15_000;
const PROBE_TIMEOUT_MS = 5_000;

/**
 * The socket's address on a server with this root. Throws TypeError if `url` is none.
 *
 * Written by hand, because React Native's URL cannot do it.
 * @param {string} url
 * @param {Record<string, string | null>} query
 * @param {string[]} channels
 */
export function address(url, query, channels) {
  if (!/^(https?|wss?):\/\/[^/]/.test(url)) {
    throw new TypeError(`${url} is not the root of a server, such as https://api.example.com`);
  }
  const given = { ...query, channels: channels.length > 0 ? channels.join(",") : null };
  const pairs = Object.entries(given).filter(([, value]) => value !== null);
  const text = pairs.map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`).join("&");
  return `${url.replace(/^http/, "ws").replace(/\/+$/, "")}${PATH}?${text}`;
}

/**
 * Whose token it is, by its own word, which the server checks; null if it does not say.
 * @param {string} token
 * @returns {string | null}
 */
export function subject(token) {
  try {
    const sub = JSON.parse(fromBase64(token.split(".")[1] ?? "")).sub;
    return typeof sub === "string" ? sub : null;
  } catch {
    return null; // not a JWT that we can read; the server may
  }
}

/**
 * The text in base64 of either alphabet: not every runtime has `atob`.
 * @param {string} encoded
 */
function fromBase64(encoded) {
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  let bits = 0;
  let held = 0;
  let escaped = "";
  for (const letter of encoded.replace(/=+$/, "").replace(/\+/g, "-").replace(/\//g, "_")) {
    bits = (bits << 6) | alphabet.indexOf(letter);
    held += 6;
    if (held >= 8) {
      held -= 8;
      escaped += `%${((bits >> held) & 255).toString(16).padStart(2, "0")}`;
      bits &= (1 << held) - 1;
    }
  }
  return decodeURIComponent(escaped);
}

/** An open socket, and the questions under way on it. */
export class Connection {
  #socket;
  #answers = new Map();
  #next = 0;
  /** @type {(error: ClientError) => void} */
  #end = () => {};

  /** @param {WebSocket} socket */
  constructor(socket) {
    this.#socket = socket;
    /**
     * Resolves with what ended the connection.
     * @type {Promise<ClientError>}
     */
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /**
   * Has `take` called with each text; what that throws ends the connection.
   * @param {(text: string) => void} take
   */
  listen(take) {
    this.#socket.onmessage = ({ data }) => {
      try {
        take(data);
      } catch (error) {
        this.end(error instanceof ClientError ? error : new ClientError(`The client failed: ${error}.`, { cause: error }));
      }
    };
    this.#socket.onclose = ({ code, reason }) => this.end(lost(code, reason));
    this.#socket.onerror = () => {};
  }

  /**
   * Sends, if there still is somebody; whoever listens hears of it if not.
   * @param {Record<string, unknown>} message
   */
  send(message) {
    if (this.#socket.readyState === 1) this.#socket.send(JSON.stringify(message));
  }

  /**
   * Sends, and waits for the answer. Throws Offline or RequestFailed.
   * @param {Record<string, unknown>} message
   * @returns {Promise<any>}
   */
  async ask(message) {
    const ref = `ask:${(this.#next += 1)}`;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    try {
      const said = await new Promise((resolve, reject) => {
        this.#answers.set(ref, { resolve, reject });
        timer = setTimeout(() => reject(new Offline("The server did not answer in time.")), ANSWER_TIMEOUT_MS);
        this.send({ ...message, ref });
      });
      if (said.type === "error") throw new RequestFailed(said.code, said.error);
      return said;
    } finally {
      clearTimeout(timer);
      this.#answers.delete(ref);
    }
  }

  /**
   * Hands an answer to whoever asked; whether anybody had.
   * @param {any} message
   */
  answered(message) {
    const asked = this.#answers.get(message.ref);
    asked?.resolve(message);
    return asked !== undefined;
  }

  /**
   * Ends the connection and every question, and does not wait for the network to agree.
   * @param {ClientError} why
   */
  end(why) {
    const socket = this.#socket;
    socket.onmessage = socket.onclose = null;
    for (const { reject } of this.#answers.values()) {
      reject(new Offline("The connection went away before the answer came."));
    }
    this.#answers.clear();
    try {
      socket.close();
    } catch {
      // it has been closed
    }
    this.#end(why);
  }
}

/**
 * What a close code means.
 * @param {number} code
 * @param {string} reason
 */
function lost(code, reason) {
  if (verdict(code) === "end") return new Ended(code, reason || "closed");
  if (code === 1005 || code === 1006) return new ConnectionLost("The connection broke.");
  return new ConnectionLost(`The server closed the connection: ${reason || "closed"} (${code}).`, code);
}

/**
 * An open connection. Throws Ended, Rejected or ConnectionLost.
 *
 * A browser does not tell why a handshake failed, so the same token asks again over HTTP.
 * @param {string} target
 * @param {string} token
 * @param {{WebSocket: typeof WebSocket, fetch: typeof fetch | undefined, url: string}} environment
 * @returns {Promise<Connection>}
 */
export async function connect(target, token, { WebSocket, fetch, url }) {
  const socket = await new Promise((resolve) => {
    const opening = new WebSocket(target, ["momentum.v1", `bearer.${token}`]);
    const timer = setTimeout(() => done(null), OPEN_TIMEOUT_MS);
    /** @param {WebSocket | null} opened */
    const done = (opened) => {
      clearTimeout(timer);
      opening.onopen = opening.onclose = null;
      if (opened === null) {
        opening.onerror = () => {};
        opening.close();
      }
      resolve(opened);
    };
    opening.onopen = () => done(opening);
    opening.onerror = () => {};
    opening.onclose = () => done(null);
  });
  if (socket !== null) return new Connection(socket);
  throw await refusal(url, token, fetch);
}

/**
 * Why the server does not take a connection.
 * @param {string} url
 * @param {string} token
 * @param {typeof fetch | undefined} fetch
 */
async function refusal(url, token, fetch) {
  const unreachable = new ConnectionLost("The server cannot be reached.");
  if (fetch === undefined) return unreachable;
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), PROBE_TIMEOUT_MS);
  try {
    const response = await fetch(`${url.replace(/^ws/, "http").replace(/\/+$/, "")}/sync/momentum`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify({ user_id: subject(token) }),
      signal: patience.signal,
    });
    if (response.ok) return new ConnectionLost("The server did not take the socket.");
    const { error } = await response.json();
    if (verdict(response.status) === "end" && response.status !== 422) return new Ended(response.status, error.message);
    return new Rejected(response.status, error.code, error.message);
  } catch {
    return unreachable; // or somebody between us and the server answered
  } finally {
    clearTimeout(timer);
  }
}

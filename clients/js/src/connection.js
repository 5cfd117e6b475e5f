// One connection of a client: the socket, from the handshake to its end, in the SDK's own errors.

import {
  ClientError,
  ConnectionLost,
  Ended,
  Offline,
  Rejected,
  RequestFailed,
  TokenUnavailable,
} from "./errors.js";
import { verdict } from "./protocol.js";

/** Codes with which the server refuses a connection for good. Any other 403 is from a proxy. */
export const OWN_CODES = new Set([
  "bad_address",
  "bad_handshake",
  "forbidden",
  "forbidden_origin",
  "invalid_text",
  "invalid_user_id",
  "repeated_header",
  "too_long",
  "upgrade_required",
]);
const PATH = "/functions/v1/realtime-momentum-sync";
/** The server takes as many in the address of a connection. */
const MOST_CHANNELS = 500;
const OPEN_TIMEOUT_MS = 15_000;
const ANSWER_TIMEOUT_MS = 15_000;
const PROBE_TIMEOUT_MS = 5_000;
const TERMINATE_AFTER_MS = 2_000;
const TOKEN_TIMEOUT_MS = 30_000;

/**
 * Return the WebSocket address on a server with this root URL. Throws TypeError if `url` is not a URL.
 *
 * It does not use URL, because React Native's implementation is incomplete.
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
 * Return whether traffic to this address is readable by others: unencrypted, and beyond this machine.
 * @param {string} target
 */
export function isOpen(target) {
  return /^ws:/.test(target) && !/^ws:\/\/(localhost|127\.0\.0\.1|\[::1\])([:/]|$)/.test(target);
}

/**
 * Return the user that a token claims, which the server verifies; null if it claims none.
 * @param {string} token
 * @returns {string | null}
 */
export function subject(token) {
  try {
    const sub = JSON.parse(fromBase64(token.split(".")[1] ?? "")).sub;
    return typeof sub === "string" ? sub.toLowerCase() : null;
  } catch {
    return null; // not a JWT that we can read; the server may
  }
}

/**
 * Decode base64 of either alphabet: not every runtime has `atob`.
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
  #over = false;
  /** @type {(error: ClientError) => void} */
  #end = () => {};

  /** @type {string[]} */
  #early = [];

  /** @param {WebSocket} socket */
  constructor(socket) {
    this.#socket = socket;
    socket.onmessage = ({ data }) => void this.#early.push(data); // until somebody listens
    socket.onclose = ({ code, reason }) => this.end(lost(code, reason));
    socket.onerror = () => {};
    /**
     * Resolves with the error that ended the connection.
     * @type {Promise<ClientError>}
     */
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /**
   * Call `take` with each message; an exception of it ends the connection.
   * @param {(text: string) => void} take
   */
  listen(take) {
    const carefully = (/** @type {string} */ text) => {
      try {
        take(text);
      } catch (error) {
        this.end(error instanceof ClientError ? error : new ClientError(`The client failed: ${error}.`, { cause: error }));
      }
    };
    if (this.#socket.onmessage !== null) this.#socket.onmessage = ({ data }) => carefully(data);
    for (const text of this.#early.splice(0)) {
      if (!this.#over) carefully(text);
    }
  }

  /**
   * Send a message. If the connection is lost, the listener gets the error.
   * @param {Record<string, unknown>} message
   */
  send(message) {
    if (this.#socket.readyState === 1) this.#socket.send(JSON.stringify(message));
  }

  /**
   * Send a message and return its answer. Throws Offline or RequestFailed.
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
   * Pass an answer to the caller that waits for it. Returns whether there was one.
   * @param {any} message
   */
  answered(message) {
    const asked = this.#answers.get(message.ref);
    asked?.resolve(message);
    return asked !== undefined;
  }

  /**
   * Close the connection and fail all open questions, without waiting for the network.
   * @param {ClientError} why
   */
  end(why) {
    const socket = this.#socket;
    if (this.#over) return;
    this.#over = true;
    socket.onmessage = socket.onclose = null;
    for (const { reject } of this.#answers.values()) {
      reject(new Offline("The connection was lost before the answer arrived."));
    }
    this.#answers.clear();
    socket.close();
    const terminate = /** @type {any} */ (socket).terminate; // where it is of the package `ws`
    if (terminate !== undefined) {
      /** @type {any} */ (setTimeout(() => terminate.call(socket), TERMINATE_AFTER_MS)).unref(); // as only Node has it
    }
    this.#end(why);
  }
}

/**
 * Return the error for a close code.
 * @param {number} code
 * @param {string} reason
 */
function lost(code, reason) {
  if (verdict(code) === "end") return new Ended(code, reason || "closed");
  if (code === 1005 || code === 1006) return new ConnectionLost("The connection was lost.");
  return new ConnectionLost(`The server closed the connection: ${reason || "closed"} (${code}).`, code);
}

/**
 * Return a token, calling the provider if it is a function. Throws TokenUnavailable.
 * @param {string | (() => string | Promise<string>)} token
 * @returns {Promise<string>}
 */
export async function fresh(token) {
  /** @type {unknown} */
  let given = token;
  if (typeof token === "function") {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    try {
      given = await Promise.race([
        token(),
        new Promise((_, reject) => {
          timer = setTimeout(() => reject(new Error("it did not answer in time")), TOKEN_TIMEOUT_MS);
        }),
      ]);
    } catch (error) {
      throw new TokenUnavailable(`The token provider failed: ${error instanceof Error ? error.message : error}.`, { cause: error });
    } finally {
      clearTimeout(timer);
    }
  }
  if (typeof given !== "string" || !/^[!-~]+$/.test(given)) {
    throw new TokenUnavailable("The token is invalid: it must be a non-empty ASCII string without spaces.");
  }
  return given;
}

/**
 * Open a connection. Throws Ended, Rejected or ConnectionLost.
 *
 * Browsers hide why a handshake failed, so the reason is requested over HTTP with the same token.
 * @param {string} target
 * @param {string} token
 * @param {{WebSocket: typeof WebSocket, fetch: typeof fetch | undefined, url: string, userId: string | null,
 *   signal: AbortSignal}} environment
 * @returns {Promise<Connection>}
 */
export async function connect(target, token, { WebSocket, fetch, url, userId, signal }) {
  if (signal.aborted) throw new ConnectionLost("The program has closed the connection.");
  /** @type {Connection | null} */
  const connection = await new Promise((resolve) => {
    const opening = new WebSocket(target, ["momentum.v1", `bearer.${token}`]);
    const fail = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", fail);
      opening.onopen = opening.onclose = null;
      opening.onerror = () => {};
      opening.close();
      resolve(null);
    };
    const timer = setTimeout(fail, OPEN_TIMEOUT_MS);
    signal.addEventListener("abort", fail);
    opening.onopen = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", fail);
      opening.onopen = null;
      resolve(new Connection(opening)); // at once: the greeting may be here already
    };
    opening.onerror = opening.onclose = fail; // some runtimes tell of only one of the two
  });
  if (connection !== null) return connection;
  throw await refusal(url, token, userId ?? subject(token), fetch, signal);
}

/**
 * Return why the server refuses a connection.
 * @param {string} url
 * @param {string} token
 * @param {string | null} userId
 * @param {typeof fetch | undefined} fetch
 * @param {AbortSignal} signal
 */
async function refusal(url, token, userId, fetch, signal) {
  const unreachable = new ConnectionLost("The server cannot be reached.");
  if (fetch === undefined || signal.aborted) return unreachable;
  const patience = new AbortController();
  const stop = () => patience.abort();
  const timer = setTimeout(stop, PROBE_TIMEOUT_MS);
  signal.addEventListener("abort", stop);
  const [path, body] = userId === null ? ["/sync/overview", { days: 1 }] : ["/sync/momentum", { user_id: userId }];
  try {
    const response = await fetch(`${url.replace(/^ws/, "http").replace(/\/+$/, "")}${path}`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: patience.signal,
    });
    if (response.ok) return new ConnectionLost("The server accepts HTTP requests but rejected the WebSocket.");
    const { error } = await response.json();
    if (typeof error?.code !== "string" || typeof error.message !== "string") return unreachable;
    if (verdict(response.status) === "end" && OWN_CODES.has(error.code)) return new Ended(response.status, error.message);
    return new Rejected(response.status, error.code, error.message);
  } catch {
    return unreachable; // or somebody between us and the server answered
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
}

/**
 * Return the given WebSocket, or the runtime's. Throws Ended if there is none.
 * @param {any} given
 * @returns {typeof WebSocket}
 */
export function webSocket(given) {
  const found = given ?? globalThis.WebSocket;
  if (found !== undefined) return found;
  throw new Ended(0, "This runtime has no WebSocket; pass one, such as that of the package ws: `new Client(url, token, { WebSocket })`");
}

/** A name for the device. Not a secret: not every runtime has `crypto.randomUUID`. */
export function randomId() {
  return Array.from({ length: 4 }, () => Math.random().toString(36).slice(2, 10)).join("-");
}

/**
 * Return each channel once. Refuse one string, which is a list of characters, and too many for a reconnect.
 * @param {string[]} channels
 * @param {string[]} [others]
 */
export function checkNames(channels, others = []) {
  if (typeof channels === "string") throw new TypeError(`channels must be a list of names, such as ["${channels}"]`);
  const unique = [...new Set(channels)];
  if (new Set([...unique, ...others]).size > MOST_CHANNELS) {
    throw new RangeError(`a client can have at most ${MOST_CHANNELS} channels; use a second client for the others`);
  }
  return unique;
}

/**
 * Return the channels that are not among `others`.
 * @param {string[]} channels
 * @param {string[]} others
 */
export function without(channels, others) {
  return channels.filter((channel) => !others.includes(channel));
}

// What a program has fetched, until the server says that it is no longer true.

import { FetchFailed } from "./errors.js";

const MOST_FETCHES = 3;

/**
 * What is kept of a key. `at` is when it was fetched, milliseconds since 1970.
 * @typedef {object} Entry
 * @property {unknown} value
 * @property {number} at
 */

/**
 * Values by key. Whoever asks for a key while it is being fetched shares the fetch.
 *
 * What is there stays good while the client is offline, for want of better; when it is back, whatever was invalidated
 * meanwhile is dropped before anything else happens, and everything where that cannot be known.
 */
export class Cache {
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  /** @type {Set<string>} */
  #persistent = new Set();
  /** @type {Map<string, Promise<any>>} */
  #fetching = new Map();
  #generation = 0;
  #clock;
  #kept;

  /**
   * @param {() => number} clock
   * @param {() => void} kept called when a persistent value has come
   */
  constructor(clock, kept) {
    this.#clock = clock;
    this.#kept = kept;
  }

  /**
   * The value of a key, fetched if it is not there. What `fetch` throws is thrown, and nothing is kept; FetchFailed if it
   * does not come `within` so many milliseconds. A `persistent` value outlives the program, in the client's store, and
   * must come back from JSON as it was (null, booleans, finite numbers, texts, arrays, plain objects): TypeError if it
   * does not.
   * @template T
   * @param {string} key
   * @param {() => T | Promise<T>} fetch
   * @param {{persistent?: boolean, within?: number}} [options]
   * @returns {Promise<T>}
   */
  async get(key, fetch, { persistent = false, within = 60_000 } = {}) {
    const entry = this.#entries.get(key);
    if (entry !== undefined) return /** @type {T} */ (entry.value);
    const underWay = this.#fetching.get(key);
    if (underWay !== undefined) return underWay;
    /** @type {{promise?: Promise<T>}} */
    const own = {};
    own.promise = Promise.resolve().then(() => this.#fetch(key, () => inTime(key, fetch, within), persistent, own));
    this.#fetching.set(key, own.promise);
    return own.promise;
  }

  /**
   * What is there, and when it was fetched.
   * @param {string} key
   * @returns {Entry | undefined}
   */
  peek(key) {
    return this.#entries.get(key);
  }

  /**
   * Lets go of keys; whether one of them was persistent.
   * @param {Iterable<string>} keys
   */
  drop(keys) {
    let persistent = false;
    for (const key of keys) {
      this.#entries.delete(key);
      this.#fetching.delete(key); // what it brings is not kept
      persistent = this.#persistent.delete(key) || persistent;
    }
    if (persistent) this.#kept();
    return persistent;
  }

  /** Lets go of everything: of which keys. */
  clear() {
    const keys = [...new Set([...this.#entries.keys(), ...this.#fetching.keys()])];
    this.drop(keys);
    return keys;
  }

  /** As `clear`, because it is another user's now: what is being fetched is neither kept nor fetched again. */
  forget() {
    this.#generation += 1;
    return this.clear();
  }

  /**
   * What a store had kept, where nothing newer is there.
   * @param {Record<string, Entry>} entries
   */
  restore(entries) {
    for (const [key, entry] of Object.entries(entries)) {
      if (this.#entries.has(key)) continue;
      this.#entries.set(key, entry);
      this.#persistent.add(key);
    }
  }

  /** What a store is to keep. */
  saved() {
    /** @type {Record<string, Entry>} */
    const saved = {};
    for (const key of this.#persistent) {
      const entry = this.#entries.get(key);
      if (entry !== undefined) saved[key] = entry;
    }
    return saved;
  }

  /**
   * @template T
   * @param {string} key
   * @param {() => T | Promise<T>} fetch
   * @param {boolean} persistent
   * @param {{promise?: Promise<T>}} own
   * @returns {Promise<T>}
   */
  async #fetch(key, fetch, persistent, own) {
    const generation = this.#generation;
    const mine = () => this.#fetching.get(key) === own.promise;
    try {
      for (let turn = 1; ; turn += 1) {
        const at = this.#clock();
        const value = await fetch();
        if (persistent && !isJson(value)) {
          // Rather now, to whoever asks, than when all of it is saved.
          throw new TypeError(`What was fetched for ${key} is not what comes back from JSON, and cannot be kept.`);
        }
        if (mine()) {
          this.#entries.set(key, { value, at });
          if (persistent) {
            this.#persistent.add(key);
            this.#kept();
          }
          return value;
        }
        if (generation !== this.#generation) return value;
        // It was invalidated meanwhile, and may be from before.
        const newer = this.#entries.get(key);
        if (newer !== undefined) return /** @type {T} */ (newer.value);
        const others = this.#fetching.get(key); // of whoever came after that
        if (others !== undefined) return others;
        if (turn === MOST_FETCHES) return value;
        this.#fetching.set(key, /** @type {Promise<T>} */ (own.promise));
      }
    } finally {
      if (mine()) this.#fetching.delete(key);
    }
  }
}

/**
 * @template T
 * @param {string} key
 * @param {() => T | Promise<T>} fetch
 * @param {number} within milliseconds
 * @returns {Promise<T>}
 */
async function inTime(key, fetch, within) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new FetchFailed(`The fetch of ${key} took more than ${within / 1000} s.`)), within);
  });
  try {
    return await /** @type {Promise<T>} */ (Promise.race([fetch(), late]));
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Whether a value comes back from JSON as it was: undefined, NaN, dates and objects of classes do not.
 * @param {any} value
 * @returns {boolean}
 */
function isJson(value) {
  if (value === null || typeof value === "boolean" || typeof value === "string") return true;
  if (typeof value === "number") return Number.isFinite(value);
  if (Array.isArray(value)) return Array.from(value).every(isJson);
  if (typeof value !== "object") return false;
  const kind = Object.getPrototypeOf(value);
  return (kind === Object.prototype || kind === null) && Object.values(value).every(isJson);
}

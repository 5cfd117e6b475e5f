// A cache of values that the program fetches, dropped when the server invalidates them.

import { FetchFailed } from "./errors.js";

const MOST_FETCHES = 3;

/**
 * A cache entry. `at` is the time of its fetch, milliseconds since 1970.
 * @typedef {object} Entry
 * @property {unknown} value
 * @property {number} at
 */

/**
 * Values by key. Concurrent requests for a key share one fetch.
 *
 * Values stay available while the client is offline. On reconnect, keys that were invalidated meanwhile are dropped
 * before anything else happens; if they cannot be known, all keys are dropped.
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
   * Return the value of a key, fetching it if it is missing. An error of `fetch` is rethrown and nothing is cached; a
   * fetch that exceeds `within` milliseconds throws FetchFailed. A `persistent` value is kept in the client's store
   * across restarts and must survive JSON unchanged (null, booleans, finite numbers, strings, arrays, plain objects),
   * else TypeError.
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
   * Return the cached value and the time of its fetch.
   * @param {string} key
   * @returns {Entry | undefined}
   */
  peek(key) {
    return this.#entries.get(key);
  }

  /**
   * Drop keys. Returns whether one of them was persistent.
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

  /** Drop everything. Returns the keys. */
  clear() {
    const keys = [...new Set([...this.#entries.keys(), ...this.#fetching.keys()])];
    this.drop(keys);
    return keys;
  }

  /** Drop everything because the user has changed: values being fetched are neither kept nor fetched again. */
  forget() {
    this.#generation += 1;
    return this.clear();
  }

  /**
   * Add the entries of a store, where there is nothing newer.
   * @param {Record<string, Entry>} entries
   */
  restore(entries) {
    for (const [key, entry] of Object.entries(entries)) {
      if (this.#entries.has(key)) continue;
      this.#entries.set(key, entry);
      this.#persistent.add(key);
    }
  }

  /** Return the entries for a store. */
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
          // Throw to this caller, not later when everything is saved.
          throw new TypeError(`The persistent value for ${key} does not survive a JSON round trip.`);
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
        // The key was invalidated during the fetch, so the value may be stale.
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
 * Return whether a value survives JSON unchanged: undefined, NaN, dates and class instances do not.
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

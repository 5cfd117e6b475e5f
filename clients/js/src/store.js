// Stores position, state, cache and outbox of a client across restarts.

import { StoreFailed } from "./errors.js";
import { UserState } from "./state.js";

/** @import { Saved } from "./messages.js" */
/** @import { Entry } from "./cache.js" */
/** @import { Protocol, Output } from "./protocol.js" */

const VERSION = 1;
const RETRY_MS = [1_000, 2_000, 5_000, 15_000, 60_000];

/**
 * Storage for one string, which `save` replaces completely or not at all; an empty string clears it. Exceptions are
 * reported as StoreFailed, and a save is retried. `close` is called when the client is closed.
 * @typedef {object} Store
 * @property {() => string | null | Promise<string | null>} load
 * @property {(text: string) => void | Promise<void>} save
 * @property {() => void | Promise<void>} [close]
 */

/**
 * Everything that is stored, as one document, so that a state and its position never come apart.
 * @typedef {object} Document
 * @property {number} version
 * @property {string} user_id
 * @property {string | null} last_event_id
 * @property {number | null} known_at when the state was last known to be current, milliseconds since 1970
 * @property {Saved | null} state
 * @property {Record<string, Entry>} cache
 * @property {string[]} outbox
 */

/** A store in an entry of a browser's localStorage. It is one client's: two tabs need two, or one of them none. */
export class LocalStore {
  #key;

  /** @param {string} key */
  constructor(key) {
    this.#key = key;
  }

  load() {
    return globalThis.localStorage.getItem(this.#key);
  }

  /** @param {string} text */
  save(text) {
    if (text === "") globalThis.localStorage.removeItem(this.#key);
    else globalThis.localStorage.setItem(this.#key, text);
  }
}

/** The position up to which the program has processed everything, the state there, and the store of both. */
export class Keeper {
  #store;
  #clock;
  #idle = true;
  #failures = 0;
  #againAt = 0;
  /** @type {Promise<void>} */
  #saving = Promise.resolve();
  /** @type {Promise<void> | null} */
  #last = null;

  /**
   * @param {Store | null} store
   * @param {string | null} userId
   * @param {() => number} clock
   */
  constructor(store, userId, clock) {
    this.#store = store;
    this.#clock = clock;
    /** @type {number | null} */
    this.settledAt = null;
    this.changed = false;
    /** Whether it has been read. */
    this.loaded = store === null;
    /** @type {string | null} */
    this.lastEventId = null;
    this.state = new UserState(userId ?? "");
  }

  /**
   * Record that the program has processed an event; a restarted program continues after it.
   * @param {Output} output
   */
  settle(output) {
    if (output.kind === "answer") return;
    if (output.kind === "event") this.state.fold(output.fields);
    if (output.kind === "resync") this.state.begin(output.state);
    this.lastEventId = output.id;
    this.settledAt = this.#clock();
    this.changed = true;
  }

  /**
   * Advance to a position when the program has processed all events before it.
   * @param {string} position
   */
  advance(position) {
    if (this.lastEventId === null || this.lastEventId === position) return;
    this.lastEventId = position;
    this.changed = true;
  }

  /**
   * Start empty for another user.
   * @param {string} userId
   */
  startOver(userId) {
    this.lastEventId = null;
    this.state = new UserState(userId);
    this.changed = true;
  }

  /** Whether there is a store. */
  get keeps() {
    return this.#store !== null;
  }

  /**
   * Return whether unsaved changes are due, given the last failure.
   * @param {number} at milliseconds on a clock that only goes forward
   */
  isDue(at) {
    return this.changed && at >= this.#againAt;
  }

  /**
   * Return the stored document of this user, or of any user while it is not known. Throws StoreFailed.
   * @param {string | null} userId
   * @returns {Promise<Document | null>}
   */
  async load(userId) {
    if (this.#store === null) return null;
    let text;
    try {
      text = await this.#store.load();
    } catch (error) {
      throw failed(error);
    }
    this.loaded = true; // what is no document may be replaced
    /** @type {Document | null} */
    let document;
    try {
      document = text ? JSON.parse(text) : null;
      if (document?.version === VERSION) check(document);
    } catch (error) {
      throw failed(error);
    }
    if (document?.version !== VERSION || (userId !== null && document.user_id !== userId)) return null;
    return document;
  }

  /**
   * Continue from a document of this user.
   * @param {Document} document
   */
  takeOver(document) {
    this.state = new UserState(document.user_id);
    if (document.state === null) return;
    this.state.begin(document.state);
    this.lastEventId = document.last_event_id;
  }

  /**
   * Save the processed position, after the running save, once the user is known. Throws StoreFailed.
   * @param {Protocol} following
   * @param {number | null} knownAt
   * @param {Record<string, Entry>} cache
   * @param {string[]} outbox
   */
  save(following, knownAt, cache, outbox) {
    const store = this.#store;
    if (store === null || following.userId === null) return Promise.resolve();
    this.changed = false;
    /** @type {Document} */
    const document = {
      version: VERSION,
      user_id: following.userId,
      last_event_id: this.lastEventId,
      known_at: knownAt,
      state: this.lastEventId === null ? null : this.state.saved(),
      cache,
      outbox,
    };
    return this.#write(store, JSON.stringify(document));
  }

  /** Nothing of anybody stays in the store. Throws StoreFailed. */
  clear() {
    this.lastEventId = null;
    this.state = new UserState("");
    this.changed = false;
    return this.#store === null ? Promise.resolve() : this.#write(this.#store, "");
  }

  /** Closes the store after the save under way. Throws StoreFailed. */
  async close() {
    await this.#saving;
    try {
      await this.#store?.close?.();
    } catch (error) {
      throw failed(error);
    }
  }

  /**
   * Write once the previous write has ended. On failure the changes stay unsaved.
   * @param {Store} store
   * @param {string} text
   */
  #write(store, text) {
    // The first part of a save is synchronous, because a closing page does not run the rest.
    const saved = this.#idle ? attempt(() => store.save(text)) : this.#saving.then(() => attempt(() => store.save(text)));
    this.#idle = false;
    this.#saving = saved.then(
      () => this.#done(saved),
      () => this.#done(saved),
    );
    this.#last = saved;
    return saved.then(
      () => {
        this.#failures = this.#againAt = 0;
      },
      (error) => {
        this.changed = true;
        const pause = /** @type {number} */ (RETRY_MS[Math.min(this.#failures, RETRY_MS.length - 1)]);
        this.#againAt = performance.now() + pause;
        this.#failures += 1;
        throw failed(error);
      },
    );
  }

  /** @param {Promise<void>} saved */
  #done(saved) {
    if (this.#last === saved) this.#idle = true;
  }
}

/**
 * @param {() => void | Promise<void>} work
 * @returns {Promise<void>}
 */
async function attempt(work) {
  await work();
}

/**
 * Throw for a document that is incomplete or of another program.
 * @param {any} document
 */
function check({ user_id: userId, last_event_id: place, known_at: knownAt, state, cache, outbox }) {
  const isText = (/** @type {unknown} */ one) => typeof one === "string";
  const isObject = (/** @type {unknown} */ one) => typeof one === "object" && one !== null && !Array.isArray(one);
  const whole =
    isText(userId) &&
    (place === null || isText(place)) &&
    (knownAt === null || typeof knownAt === "number") &&
    (state === null ||
      (isObject(state) &&
        (state.momentum === null || isObject(state.momentum)) &&
        [state.interventions, state.notifications].every((rows) => Array.isArray(rows) && rows.every((row) => isText(row?.id))))) &&
    isObject(cache) &&
    Object.values(cache).every((entry) => isObject(entry) && "value" in entry && typeof entry.at === "number") &&
    Array.isArray(outbox) &&
    outbox.every(isText);
  if (!whole) throw new Error("its content was not written by this client");
}

/** @param {unknown} error */
function failed(error) {
  return new StoreFailed(`The store failed: ${error instanceof Error ? error.message : error}.`, { cause: error });
}

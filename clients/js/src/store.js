// Where a client keeps its place, its state, its cache and its outbox across restarts.

import { StoreFailed } from "./errors.js";
import { UserState } from "./state.js";

/** @import { Saved } from "./messages.js" */
/** @import { Entry } from "./cache.js" */
/** @import { Following, Output } from "./following.js" */

const VERSION = 1;

/**
 * A place for one text, which `save` replaces wholly or not at all. What the methods throw is told as StoreFailed.
 * @typedef {object} Store
 * @property {() => string | null | Promise<string | null>} load
 * @property {(text: string) => void | Promise<void>} save
 */

/**
 * What is kept, as one, so that a state and its place never come apart.
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
    globalThis.localStorage.setItem(this.#key, text);
  }
}

/** The place up to which the program has had everything, with the state there, and the store that keeps it. */
export class Keeper {
  #store;
  #clock;
  #idle = true;
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
    /** @type {string | null} */
    this.lastEventId = null;
    this.state = new UserState(userId ?? "");
  }

  /**
   * The program has had this; a program that is started again goes on behind it.
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
   * The stream has come this far, and the program has had all of it.
   * @param {string} position
   */
  advance(position) {
    if (this.lastEventId === null || this.lastEventId === position) return;
    this.lastEventId = position;
    this.changed = true;
  }

  /**
   * It is another user now.
   * @param {string} userId
   */
  startOver(userId) {
    this.lastEventId = null;
    this.state = new UserState(userId);
    this.changed = true;
  }

  /**
   * What is there for this user, if anything. Throws StoreFailed.
   * @param {string | null} userId
   * @returns {Promise<Document | null>}
   */
  async load(userId) {
    if (this.#store === null) return null;
    /** @type {Document | null} */
    let document;
    try {
      const text = await this.#store.load();
      document = text === null || text === undefined ? null : JSON.parse(text);
    } catch (error) {
      throw failed(error);
    }
    if (document?.version !== VERSION || (userId !== null && document.user_id !== userId)) return null;
    this.state = new UserState(document.user_id);
    if (document.state !== null) {
      this.state.begin(document.state);
      this.lastEventId = document.last_event_id;
    }
    return document;
  }

  /**
   * Keeps the settled place, after whatever is being saved, once it is known whose it is. Throws StoreFailed.
   * @param {Following} following
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
    const text = JSON.stringify(document);
    // The first part of a save is synchronous: a page that is being closed gets no further.
    const saved = this.#idle ? attempt(() => store.save(text)) : this.#saving.then(() => attempt(() => store.save(text)));
    this.#idle = false;
    this.#saving = saved.then(
      () => this.#done(saved),
      () => this.#done(saved),
    );
    this.#last = saved;
    return saved.catch((error) => {
      throw failed(error);
    });
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

/** @param {unknown} error */
function failed(error) {
  return new StoreFailed(`The store failed: ${error instanceof Error ? error.message : error}.`, { cause: error });
}

// Everything that a client knows and stores of its user: position, state, cache, outbox, events not read yet.

import { Cache } from "./cache.js";
import { Protocol } from "./protocol.js";
import { Outbox } from "./outbox.js";
import { Keeper } from "./store.js";
import { Stream } from "./stream.js";

/** @import { ClientError } from "./errors.js" */
/** @import { Momentum } from "./messages.js" */
/** @import { Document, Store } from "./store.js" */

/** Belongs to one user at a time. `report` is called with errors of the store; the client continues without it. */
export class Replica {
  #userId;
  #clock;
  #ahead = 0;
  #report;
  #dropped;
  /** @type {Document | null} stored data of a user not known yet */
  #pending = null;
  /** Whether the user has logged out. After that, nothing is loaded or stored. */
  #over = false;
  #loads = 0;

  /**
   * @param {Store | null} store
   * @param {string | null} userId
   * @param {() => number} clock
   * @param {(error: ClientError) => void} report
   * @param {(keys: string[]) => void} dropped called with the dropped cache keys
   */
  constructor(store, userId, clock, report, dropped) {
    this.#userId = userId;
    this.#clock = clock;
    this.#report = report;
    this.#dropped = dropped;
    this.protocol = new Protocol(userId);
    this.keeper = new Keeper(store, userId, clock);
    this.stream = new Stream((output) => this.keeper.settle(output));
    this.outbox = new Outbox();
    this.cache = new Cache(clock, () => this.keep());
  }

  /** The present data, without notifications marked as read, whether or not the server has confirmed them. */
  get state() {
    return this.protocol.known(this.outbox);
  }

  /** Something changed that the store is to keep; it is saved within a second. */
  keep() {
    this.keeper.changed = true;
  }

  /** Whether the store has been read: before, its content must not be replaced. */
  get loaded() {
    return this.keeper.loaded;
  }

  /** Takes over the stored data of this user. If it cannot be read, `loadAgain` tries again. */
  async load() {
    try {
      const document = await this.keeper.load(this.#userId);
      if (this.#over) return;
      this.#pending = document;
      if (this.#userId !== null) this.#takeOver(this.#userId);
    } catch (error) {
      this.#report(/** @type {ClientError} */ (error));
    }
    this.stream.tell();
  }

  /** Reads a store again that could not be read, and merges it with later data. */
  async loadAgain() {
    this.#loads += 1;
    if (this.loaded || this.#over || (this.#loads & (this.#loads - 1)) !== 0) return; // after 1, 2, 4, 8, … times
    try {
      const document = await this.keeper.load(this.#userId);
      if (document === null || this.#over || document.user_id !== this.protocol.userId) return;
      this.cache.restore(document.cache);
      this.outbox.restore(document.outbox);
      this.keep();
    } catch (error) {
      this.#report(/** @type {ClientError} */ (error));
    }
  }

  /**
   * Continue from the stored position of this user. Data of another user are neither shown nor kept.
   * @param {string} userId
   */
  #takeOver(userId) {
    const document = this.#pending;
    if (document?.user_id !== userId) return false;
    this.#pending = null;
    this.keeper.takeOver(document);
    this.protocol.restore(document.user_id, this.keeper.lastEventId, document.known_at);
    if (document.state !== null) this.protocol.state.begin(document.state);
    this.cache.restore(document.cache);
    this.outbox.restore(document.outbox);
    return true;
  }

  /** Saves the processed position and the data, if the store has been read. Whether that is kept now. */
  async save() {
    if (!this.loaded || this.#over) return false;
    let knownAt = this.protocol.status === "live" ? this.#clock() : this.protocol.since;
    if (!this.stream.empty) knownAt = this.keeper.settledAt;
    try {
      await this.keeper.save(this.protocol, knownAt, this.cache.saved(), this.outbox.waiting);
    } catch (error) {
      this.#report(/** @type {ClientError} */ (error));
      return false;
    }
    return this.protocol.userId !== null;
  }

  /** Forgets everything of everybody, here and in the store. Throws StoreFailed. */
  async clear() {
    this.#over = true;
    this.#pending = null;
    this.protocol = new Protocol(this.#userId);
    this.outbox = new Outbox();
    this.#dropped(this.cache.forget());
    this.stream.forget();
    await this.keeper.clear();
  }

  /**
   * Note that the socket is open.
   * @param {number} at milliseconds on a clock that only goes forward
   */
  opened(at) {
    this.#ahead = this.#clock() - at;
    this.protocol.opened(this.#clock(), at);
  }

  /**
   * Return whether nothing arrived for longer than `patience` milliseconds, or the machine slept that long: a monotonic
   * clock may stand still meanwhile, and the wall clock then runs ahead of it.
   * @param {number} at
   * @param {number} patience
   */
  frozen(at, patience) {
    return this.#clock() - at - this.#ahead > patience || this.protocol.frozen(at, patience);
  }

  /**
   * Handle a message; throws as `Protocol.receive`. A heartbeat may advance the position of a program that has
   * processed all events.
   * @param {string} text
   * @param {number} at milliseconds on a clock that only goes forward
   */
  receive(text, at) {
    const outputs = this.protocol.receive(text, this.#clock(), at);
    const { position } = this.protocol;
    if (outputs.length === 0 && position !== null && this.stream.empty) this.keeper.advance(position);
    return outputs;
  }

  /**
   * Prepare for the user that the token claims: data of another user are dropped at once.
   * @param {string | null} userId
   */
  isFor(userId) {
    const wanted = this.#userId ?? userId;
    if (wanted === null) {
      // As of `service_role`; a token may also not name its user.
      if (this.protocol.userId === null) this.#takeOver("");
      return;
    }
    if (this.protocol.userId === null) {
      if (!this.#takeOver(wanted)) {
        this.protocol.userId = this.protocol.state.userId = this.keeper.state.userId = wanted;
      }
    } else if (this.protocol.userId !== wanted) {
      this.protocol = new Protocol(wanted);
      this.#startOver(wanted);
    }
  }

  /** The user of the connection, as the server confirmed it. */
  greeted() {
    const userId = this.protocol.userId ?? "";
    const pending = this.#pending;
    this.#pending = null;
    if (pending?.user_id === userId) {
      this.cache.restore(pending.cache); // the token did not say whose it is
      this.outbox.restore(pending.outbox);
    }
    if (this.keeper.state.userId !== "" && this.keeper.state.userId !== userId) this.#startOver(userId);
    this.keeper.state.userId = userId;
  }

  /** The caller may not have it: all of it is removed, here and in the store, except the user's own changes. */
  forget() {
    const { userId } = this.protocol;
    if (userId === null) return;
    this.protocol = new Protocol(userId);
    this.#letGo(userId);
  }

  /**
   * Start empty for another user.
   * @param {string} userId
   */
  #startOver(userId) {
    this.outbox = new Outbox();
    this.#letGo(userId);
  }

  /** @param {string} userId */
  #letGo(userId) {
    this.keeper.startOver(userId);
    this.#dropped(this.cache.forget());
    this.stream.forget();
  }

  /**
   * Take over a momentum that was read; false if it may be older than the last event.
   * @param {Momentum} momentum
   */
  readAgain(momentum) {
    if (!this.protocol.state.readAgain(momentum)) return false;
    this.keeper.state.readAgain(momentum);
    this.keep();
    return true;
  }

  /**
   * Remove a mark that the server has answered. The notification stays read before its event arrives.
   * @param {string} id
   * @param {boolean} gone
   */
  read(id, gone) {
    this.outbox.done(id);
    if (gone) {
      this.protocol.state.forgetNotification(id);
      this.keeper.state.forgetNotification(id);
    }
    this.keep();
  }
}

// Events that have arrived and that the program has not read yet.

import { Offline } from "./errors.js";

/** @import { Event, Output, Resync } from "./protocol.js" */
/** @import { Ended } from "./errors.js" */

const MOST_WAITING = 10_000;

/** Events and resyncs in order. `settle` is called with each once the program has processed it. */
export class Stream {
  #settle;
  /** @type {Output[]} */
  #waiting = [];
  /** @type {{deref(): Events | undefined} | null} */
  #iterator = null;
  #finished = false;
  /** @type {Ended | null} */
  #end = null;
  /** @type {Set<() => void>} */
  #waiters = new Set();

  /** @param {(output: Output) => void} settle */
  constructor(settle) {
    this.#settle = settle;
  }

  /** Whether the program has processed everything. */
  get empty() {
    return this.#waiting.length === 0;
  }

  /** Whether no more should come before the program takes some. */
  get full() {
    return this.#iterating && this.#waiting.length >= MOST_WAITING;
  }

  /** Whether the program still has half of it to take. */
  get filled() {
    return this.#iterating && this.#waiting.length > MOST_WAITING / 2;
  }

  /**
   * Add an event. Without any iterator so far it counts as processed; if there was one, it waits for a while.
   * @param {Output} output
   */
  add(output) {
    if (!this.#iterating && this.#waiting.length === 0) {
      this.#settle(output);
      return;
    }
    this.#waiting.push(output);
    if (!this.#iterating && this.#waiting.length > MOST_WAITING) this.#take();
  }

  /**
   * Record that the program has processed everything up to this.
   * @param {Output} output
   */
  ack(output) {
    if (!this.#waiting.includes(output)) return;
    while (this.#take() !== output);
  }

  #take() {
    const output = this.#waiting.shift();
    if (output !== undefined) this.#settle(output);
    return output;
  }

  /** The waiting entries belong to another user. */
  forget() {
    this.#waiting = [];
  }

  /** Start an iterator of everything that waits or comes; it replaces an earlier one. */
  begin() {
    const events = new Events(this);
    // An iterator that the program dropped silently does not hold the stream, if the runtime can tell.
    this.#iterator = typeof WeakRef === "function" ? new WeakRef(events) : { deref: () => events };
    this.tell();
    return events;
  }

  get #iterating() {
    return this.#iterator?.deref() !== undefined;
  }

  /**
   * Return whether this is the current iterator.
   * @param {Events} events
   */
  holds(events) {
    return this.#iterator?.deref() === events;
  }

  /**
   * Note that the program has left its loop.
   * @param {Events} events
   */
  release(events) {
    if (this.holds(events)) this.#iterator = null;
    this.tell();
  }

  /**
   * Return the entries after `last`, which the program has processed; undefined at the end. Throws Ended.
   * @param {Events} events
   * @param {Event | Resync | undefined} last
   * @returns {Promise<Event | Resync | undefined>}
   */
  async next(events, last) {
    if (last !== undefined && this.#waiting[0] === last) this.#take();
    for (;;) {
      await this.until(() => this.#waiting.length > 0 || !this.holds(events));
      if (!this.holds(events)) return undefined;
      const [output] = this.#waiting;
      if (output === undefined) {
        if (this.#end !== null) throw this.#end;
        return undefined; // the program has closed the client
      }
      if (output.kind === "event" || output.kind === "resync") return output;
      this.#take();
    }
  }

  /** Wakes all waiting calls. */
  tell() {
    for (const waiter of [...this.#waiters]) waiter();
  }

  /**
   * End the stream with an error, or with null if the program closed it.
   * @param {Ended | null} why
   */
  finish(why) {
    this.#finished = true;
    this.#end = why;
    this.tell();
  }

  /**
   * Wait until a condition holds, or the stream ends.
   * @param {() => boolean} reached
   * @returns {Promise<void>}
   */
  until(reached) {
    return new Promise((resolve) => {
      const look = () => {
        if (!reached() && !this.#finished) return;
        this.#waiters.delete(look);
        resolve();
      };
      this.#waiters.add(look);
      look();
    });
  }

  /**
   * Wait until a condition holds. Throws Ended, or Offline if the client was closed, when it cannot.
   * @param {() => boolean} reached
   */
  async surely(reached) {
    await this.until(reached);
    if (!reached()) throw this.#end ?? new Offline("The client was closed.");
  }
}

/**
 * The events of a client, in order. It ends when another iterator replaces it, or the client is closed.
 * @implements {AsyncIterableIterator<Event | Resync>}
 */
export class Events {
  #stream;
  /** @type {Event | Resync | undefined} */
  #last;

  /** @param {Stream} stream */
  constructor(stream) {
    this.#stream = stream;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** @returns {Promise<IteratorResult<Event | Resync, undefined>>} */
  async next() {
    const last = this.#last;
    this.#last = undefined;
    const value = await this.#stream.next(this, last);
    this.#last = value;
    return value === undefined ? { done: true, value } : { done: false, value };
  }

  /**
   * Leaves the rest to the next iterator.
   * @returns {Promise<IteratorResult<Event | Resync, undefined>>}
   */
  async return() {
    this.#stream.release(this);
    return { done: true, value: undefined };
  }
}

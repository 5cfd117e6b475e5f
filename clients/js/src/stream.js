// What has come and the program has not taken yet, and who waits for it.

import { Offline } from "./errors.js";

/** @import { Event, Output, Resync } from "./following.js" */
/** @import { Ended } from "./errors.js" */

const MOST_WAITING = 10_000;

/** Outputs in order. `settle` is called with each once the program has had it. */
export class Stream {
  #settle;
  /** @type {Output[]} */
  #waiting = [];
  #iterating = false;
  #finished = false;
  /** @type {Ended | null} */
  #end = null;
  /** @type {Set<() => void>} */
  #waiters = new Set();

  /** @param {(output: Output) => void} settle */
  constructor(settle) {
    this.#settle = settle;
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
   * It came. Where nobody ever iterated, the program has had it; where nobody does any longer, it waits a while.
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
   * The program has had everything up to this.
   * @param {Output} output
   */
  had(output) {
    if (!this.#waiting.includes(output)) return;
    while (this.#take() !== output);
  }

  #take() {
    const output = this.#waiting.shift();
    if (output !== undefined) this.#settle(output);
    return output;
  }

  /** What waits is another user's. */
  forget() {
    this.#waiting = [];
  }

  /**
   * What comes from now on. Throws while another iterates.
   * @returns {AsyncGenerator<Event | Resync, void, void>}
   */
  begin() {
    if (this.#iterating) throw new Error("The events are being iterated already.");
    this.#iterating = true;
    return this.#iterate();
  }

  /** @returns {AsyncGenerator<Event | Resync, void, void>} */
  async *#iterate() {
    try {
      for (;;) {
        await this.until(() => this.#waiting.length > 0);
        const [output] = this.#waiting;
        if (output === undefined) {
          if (this.#end !== null) throw this.#end;
          return; // the program has closed the client
        }
        if (output.kind === "event" || output.kind === "resync") yield output;
        if (this.#waiting[0] === output) this.#take();
      }
    } finally {
      this.#iterating = false;
    }
  }

  /** Something may have changed for those who wait. */
  tell() {
    for (const waiter of [...this.#waiters]) waiter();
  }

  /**
   * No more will come: the reason, or null where the program wanted it so.
   * @param {Ended | null} why
   */
  finish(why) {
    this.#finished = true;
    this.#end = why;
    this.tell();
  }

  /**
   * Waits until something is so, or no more will come.
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
   * Waits until something is so. Throws Ended, or Offline where the client was closed, if it will not be.
   * @param {() => boolean} reached
   */
  async surely(reached) {
    await this.until(reached);
    if (!reached()) throw this.#end ?? new Offline("The client was closed.");
  }
}

// Reports failures, events and changes of the state to the program.

import { Ended, Gap, NotUnderstood, Rejected, RequestFailed, StoreFailed } from "./errors.js";
import { Listeners, carefully } from "./listeners.js";

/** @import { ClientError } from "./errors.js" */
/** @import { ClientEvents } from "./client.js" */
/** @import { State } from "./protocol.js" */

const LOUD = [Ended, Gap, NotUnderstood, Rejected, StoreFailed];

/** Notifies listeners and `log`. */
export class Reporter {
  #log;
  #look;
  #listeners = new Listeners();
  /** The last reported data, as an object and as a text. @type {State | null} */
  #shown = null;
  #text = "";
  /** @type {State | null} */
  #told = null;

  /**
   * @param {((level: "info" | "warning", message: string) => void) | undefined} log
   * @param {() => State} look returns the present state
   */
  constructor(log, look) {
    this.#log = log;
    this.#look = look;
  }

  /**
   * @param {string} name
   * @param {(payload: any) => void} listener
   */
  add(name, listener) {
    this.#listeners.add(name, listener);
  }

  /**
   * @param {string} name
   * @param {(payload: any) => void} listener
   */
  remove(name, listener) {
    this.#listeners.remove(name, listener);
  }

  /**
   * @template {keyof ClientEvents} Name
   * @param {Name} name
   * @param {ClientEvents[Name]} payload
   */
  emit(name, payload) {
    this.#listeners.tell(name, payload);
  }

  /** @param {string} message */
  warn(message) {
    carefully(() => this.#log?.("warning", message));
  }

  /** @param {ClientError} error */
  report(error) {
    const level = LOUD.some((kind) => error instanceof kind) ? "warning" : "info";
    carefully(() => this.#log?.(level, `${error.name}: ${error.message}`));
    this.emit("error", error);
  }

  /** @param {string[]} channels that the server does not grant */
  reportRefused(channels) {
    if (channels.length > 0) this.report(new RequestFailed("forbidden", `Not allowed to subscribe to ${channels.join(", ")}.`));
  }

  /** Report the state if it has changed since the last report. */
  tellState() {
    if (!this.#listeners.has("state")) return;
    const { state } = this;
    if (state === this.#told) return;
    this.#told = state;
    this.emit("state", state); // a listener that changes it has the others told of it before: they read `client.state`
  }

  /** The present data: the same object while they are equal. */
  get state() {
    const state = this.#look();
    const text = JSON.stringify(state);
    if (this.#shown === null || text !== this.#text) this.#shown = state;
    this.#text = text;
    return this.#shown;
  }
}

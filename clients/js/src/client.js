// The client: live, offline-proof momentum data of one user.
//
// It connects, comes back by itself for as long as it is open, and keeps its place. Every failure is a typed error, told
// to listeners of "error" and to `log`; nothing is printed.

import { Cache } from "./cache.js";
import { address, connect, subject } from "./connection.js";
import {
  ClientError,
  ConnectionLost,
  Ended,
  FeedFrozen,
  Offline,
  Rejected,
  RequestFailed,
  TokenUnavailable,
} from "./errors.js";
import { Following, pause, verdict } from "./following.js";
import { Outbox } from "./outbox.js";
import { Keeper } from "./store.js";
import { Stream } from "./stream.js";

/** @import { Event, Resync, State } from "./following.js" */
/** @import { Momentum } from "./messages.js" */
/** @import { Store } from "./store.js" */
/** @import { Connection } from "./connection.js" */

/**
 * What listeners are called with.
 * @typedef {object} ClientEvents
 * @property {Event} event a committed change
 * @property {Resync} resync the stream begins anew: events may be missing before it
 * @property {State} state the state is another
 * @property {string[]} invalidated cache keys that have just been dropped
 * @property {ClientError} error something failed; the client goes on, unless it is an Ended
 */

/**
 * @typedef {object} Options
 * @property {string | null} [userId] whose data, where it is not the token's own
 * @property {string} [clientId] names the device; a second connection with the same user and name replaces the first
 * @property {string[]} [channels] asked for beside the user's own
 * @property {Store | null} [store] keeps place, state, persistent cache and outbox across restarts
 * @property {number} [patience] milliseconds without a message after which the feed counts as frozen (heartbeats: 25 s)
 * @property {(level: "info" | "warning", message: string) => void} [log]
 * @property {() => number} [clock] milliseconds since 1970
 * @property {any} [WebSocket] where the runtime has none, such as the one of the package `ws`
 * @property {typeof fetch} [fetch]
 */

const TICK_MS = 1_000;
const STEADY_MS = 5_000;
const LATER = 6; // as after so many failures: the longest pause

/** A user's connection to a Momentum Sync server, and what it knows. */
export class Client {
  #url;
  #token;
  #options;
  #patience;
  #clock;
  #wanted;
  #following;
  #keeper;
  #outbox = new Outbox();
  #stream;
  /** @type {Connection | null} */
  #connection = null;
  /** @type {Map<string, Set<(payload: any) => void>>} */
  #listeners = new Map();
  /** @type {(() => void) | null} */
  #hurry = null;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #ticker;
  /** @type {(() => void)[]} */
  #untie = [];
  #open = false;
  #probing = false;
  #reading = false;
  #told = "";

  /**
   * @param {string} url the server's root
   * @param {string | (() => string | Promise<string>)} token a token, or what gives one: it is called for each
   *   connection, and when the token is about to expire
   * @param {Options} [options]
   */
  constructor(url, token, options = {}) {
    address(url, {}, []);
    this.#url = url;
    this.#token = token;
    this.#options = { clientId: randomId(), ...options };
    this.#patience = options.patience ?? 60_000;
    this.#clock = options.clock ?? Date.now;
    this.#wanted = [...new Set(options.channels ?? [])];
    this.#following = new Following(options.userId ?? null);
    this.#keeper = new Keeper(options.store ?? null, options.userId ?? null);
    this.#stream = new Stream((output) => this.#keeper.settle(output));
    /** What the program has fetched, until the server says that it is no longer true. */
    this.cache = new Cache(this.#clock, () => this.#keep());
  }

  // What a program asks for

  /** Reads the store and connects, in the background. */
  start() {
    if (this.#open) throw new Error("A client is started once.");
    this.#open = true;
    this.#ticker = setInterval(() => this.#tick(), Math.min(TICK_MS, this.#patience / 4));
    this.#untie = this.#tie();
    void this.#run();
    return this;
  }

  /** Ends the connection, and saves the place. */
  async close() {
    if (!this.#open) return;
    this.#open = false;
    clearInterval(this.#ticker);
    for (const untie of this.#untie) untie();
    await this.#save();
    this.#connection?.end(new ConnectionLost("The program has closed the connection."));
    this.#hurry?.();
    this.#following.lost(this.#clock());
    this.#tell();
    this.#stream.finish(null);
  }

  /**
   * What is known now. Notifications that were marked as read are not in it, told to the server or not.
   * @returns {State}
   */
  get state() {
    return this.#following.known(this.#outbox);
  }

  /** Whose data it is; null until that is known, and for a connection without a user. */
  get userId() {
    return this.#following.userId || null;
  }

  /** The channels that are held, as the server confirmed them last. */
  get channels() {
    return [...this.#following.channels];
  }

  /** How many notifications were marked as read that the server has not heard of yet. */
  get unsent() {
    return this.#outbox.waiting.length;
  }

  /** Milliseconds by which the server's feed was late at the last heartbeat. */
  get lagMs() {
    return this.#following.lagMs;
  }

  /**
   * Calls the listener with what happens. Returns what ends that.
   * @template {keyof ClientEvents} Name
   * @param {Name} name
   * @param {(payload: ClientEvents[Name]) => void} listener
   */
  addEventListener(name, listener) {
    const held = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, held.add(listener));
    return () => this.removeEventListener(name, listener);
  }

  /**
   * @template {keyof ClientEvents} Name
   * @param {Name} name
   * @param {(payload: ClientEvents[Name]) => void} listener
   */
  removeEventListener(name, listener) {
    this.#listeners.get(name)?.delete(listener);
  }

  /**
   * Every event from now on, in commit order, across all that happens to the connection; and each `Resync`.
   *
   * An event counts as had once the next one is asked for, or `had` was called with it: with a store, a program that is
   * started again goes on there, and so does the next iterator. Throws Ended where the client does not come back by
   * itself. One iterator at a time.
   * @returns {AsyncGenerator<Event | Resync, void, void>}
   */
  events() {
    return this.#stream.begin();
  }

  /**
   * The program is done with this: for one that leaves its loop on purpose, lest it comes again.
   * @param {Event | Resync} event
   */
  had(event) {
    this.#stream.had(event);
  }

  /**
   * Waits until the state is current. Throws Ended, or Offline where the client was closed, if it will not be.
   * @returns {Promise<State>}
   */
  async untilLive() {
    await this.#stream.surely(() => this.#following.status === "live");
    return this.state;
  }

  /**
   * Resolves once it is kept; the server is told now or, offline, later. What the server has against it, is told to
   * listeners of "error".
   * @param {string} notificationId
   */
  async markNotificationRead(notificationId) {
    this.#outbox.add(notificationId.toLowerCase());
    this.#tell();
    await this.#save();
    this.#post();
  }

  /** Waits until the server has taken everything that was marked. Throws as `untilLive`. */
  async sent() {
    await this.#stream.surely(() => this.#outbox.waiting.length === 0);
  }

  /**
   * The momentum with what events do not carry: its breakdown and count. Throws Offline or RequestFailed.
   * @returns {Promise<Momentum>}
   */
  async requestMomentumUpdate() {
    const { data } = await this.#ask({ type: "request_momentum_update" });
    if (this.#following.state.readAgain(data)) {
      this.#keeper.state.readAgain(data);
      this.#keep();
      this.#tell();
    }
    return data;
  }

  /**
   * Asks for channels, now and whenever it connects; offline, with the next connection. Throws RequestFailed if one of
   * them is not granted; then none of them is held.
   * @param {string[]} channels
   */
  async subscribe(channels) {
    const fresh = [...new Set(channels)].filter((channel) => !this.#wanted.includes(channel));
    this.#wanted = [...this.#wanted, ...fresh];
    if (fresh.length === 0) return;
    try {
      await this.#ask({ type: "subscribe", channels: fresh });
    } catch (error) {
      if (error instanceof Offline) return;
      this.#wanted = this.#wanted.filter((channel) => !fresh.includes(channel));
      throw error;
    }
  }

  /**
   * Lets go of channels.
   * @param {string[]} channels
   */
  async unsubscribe(channels) {
    this.#wanted = this.#wanted.filter((channel) => !channels.includes(channel));
    await this.#ask({ type: "unsubscribe", channels }).catch(unlessOffline);
  }

  /** The network is back, or the program was asleep: do not wait any longer, and see whether the socket lives. */
  wake() {
    this.#hurry?.();
    if (this.#connection !== null && !this.#checkFrozen()) void this.#probe(this.#connection);
  }

  // The connection, again and again

  async #run() {
    await this.#load();
    let failures = 0;
    while (this.#open) {
      const began = this.#clock();
      const error = await this.#once();
      if (!this.#open) return;
      const now = this.#clock();
      failures = this.#following.online && now - began > STEADY_MS ? 1 : failures + 1;
      this.#following.lost(now);
      this.#outbox.lost();
      this.#report(error);
      if (error instanceof Ended) {
        this.#following.ended(now);
        await this.#save();
        this.#tell();
        this.#stream.finish(error);
        return;
      }
      this.#tell();
      const code = error instanceof Rejected ? error.status : error instanceof ConnectionLost ? error.code : null;
      if (code !== null && verdict(code) === "later") failures = Math.max(failures, LATER);
      if (!(error instanceof FeedFrozen)) await this.#pause(pause(failures, Math.random()));
      while (this.#open && this.#stream.filled) await this.#pause(TICK_MS);
    }
  }

  /**
   * @param {number} milliseconds
   * @returns {Promise<void>}
   */
  #pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#hurry?.(), milliseconds);
      this.#hurry = () => {
        clearTimeout(timer);
        this.#hurry = null;
        resolve();
      };
    });
  }

  /**
   * One connection, to its end; what ended it.
   * @returns {Promise<ClientError>}
   */
  async #once() {
    try {
      const WebSocket = await this.#webSocket();
      const token = await this.#freshToken();
      this.#isFor(subject(token));
      const query = {
        user_id: this.#options.userId ?? null,
        client_id: this.#options.clientId,
        last_event_id: this.#following.connecting(),
      };
      const fetch = this.#options.fetch ?? globalThis.fetch;
      const target = address(this.#url, query, this.#wanted);
      const connection = await connect(target, token, { WebSocket, fetch, url: this.#url });
      if (!this.#open) {
        connection.end(new ConnectionLost("The program has closed the connection."));
        return connection.ended;
      }
      this.#following.opened(this.#clock());
      this.#connection = connection;
      connection.listen((text) => this.#take(text, connection));
      return await connection.ended;
    } catch (error) {
      if (error instanceof ClientError) return error;
      return new ClientError(`The client failed: ${error}.`, { cause: error }); // whatever it is, the client comes back
    } finally {
      this.#connection = null;
    }
  }

  /**
   * @param {string} text
   * @param {Connection} connection
   */
  #take(text, connection) {
    for (const output of this.#following.receive(text, this.#clock())) {
      if (output.kind === "answer") {
        this.#answered(output.message, connection);
        continue;
      }
      let persistent = false;
      if (output.kind === "resync") {
        this.#emit("invalidated", this.cache.clear());
        persistent = true;
      } else if (output.kind === "invalidated") {
        persistent = this.cache.drop(output.keys);
        this.#emit("invalidated", output.keys);
      }
      this.#stream.add(output);
      if (output.kind === "event" || output.kind === "resync") this.#emit(output.kind, output);
      const kept = persistent ? this.#save() : Promise.resolve();
      if (output.kind === "invalidated") {
        void kept.then(() => connection.send({ type: "cache_invalidation_ack", cache_keys: output.keys }));
      }
    }
    if (this.#following.state.unsure) void this.#readAgain();
    this.#tell();
    if (this.#stream.full) {
      connection.end(new ConnectionLost("The program does not take its events; the connection waits for it."));
    }
  }

  /**
   * @param {any} message
   * @param {Connection} connection
   */
  #answered(message, connection) {
    const { type, ref } = message;
    if (type === "token_expiring") {
      void this.#renew();
    } else if (type === "subscription_confirmed" && ref === undefined) {
      this.#keeper.state.userId = this.#following.userId ?? "";
      this.#post();
    } else if (type === "notification_marked_read") {
      this.#read(message.notification_id, true);
    } else if (type === "error" && typeof ref === "string" && ref.startsWith("read:")) {
      this.#refused(ref.slice("read:".length), message);
    } else if (!connection.answered(message) && type === "error") {
      this.#report(new RequestFailed(message.code, message.error));
    }
  }

  /**
   * @param {string} id
   * @param {any} message
   */
  #refused(id, message) {
    this.#report(new RequestFailed(message.code, message.error));
    if (message.code === "unavailable") {
      this.#outbox.later(id);
      return;
    }
    this.#read(id, message.code === "not_found");
  }

  /**
   * The server has answered. What was read is not unread, also before the event that says so has come.
   * @param {string} id
   * @param {boolean} gone
   */
  #read(id, gone) {
    this.#outbox.done(id);
    if (gone) {
      this.#following.state.forgetNotification(id);
      this.#keeper.state.forgetNotification(id);
    }
    this.#keep();
    this.#tell();
    this.#post();
  }

  // Out

  /**
   * @param {Record<string, unknown>} message
   * @returns {Promise<any>}
   */
  async #ask(message) {
    if (this.#connection === null || !this.#following.online) throw new Offline("There is no connection now.");
    return this.#connection.ask(message);
  }

  /** Sends what waits in the outbox, a few at a time. */
  #post() {
    const connection = this.#connection;
    if (connection === null || !this.#following.online) return;
    for (const id of this.#outbox.take()) {
      connection.send({ type: "mark_notification_read", notification_id: id, ref: `read:${id}` });
    }
  }

  /** Reads the momentum where events do not say what it is, until what is read is not older than they. */
  async #readAgain() {
    if (this.#reading) return;
    this.#reading = true;
    while (this.#following.state.unsure && this.#following.online) {
      await this.requestMomentumUpdate().catch((error) => this.#report(error));
      if (this.#following.state.unsure) await new Promise((resolve) => setTimeout(resolve, TICK_MS));
    }
    this.#reading = false;
  }

  /** @returns {Promise<string>} */
  async #freshToken() {
    if (typeof this.#token === "string") return this.#token;
    try {
      return await this.#token();
    } catch (error) {
      throw new TokenUnavailable(`The token provider failed: ${said(error)}.`, { cause: error });
    }
  }

  /** A fresh token without reconnecting. Without one the server ends the connection, and it is asked for again. */
  async #renew() {
    try {
      await this.#ask({ type: "authenticate", token: await this.#freshToken() });
    } catch (error) {
      this.#report(/** @type {ClientError} */ (error));
    }
  }

  // The clock, and the page

  #tick() {
    if (this.#connection !== null) this.#checkFrozen();
    this.#post();
    if (this.#keeper.changed) void this.#save();
  }

  /** Ends a connection whose feed stands still, or that a sleeping machine has lost. */
  #checkFrozen() {
    if (!this.#following.online || !this.#following.frozen(this.#clock(), this.#patience)) return false;
    this.#connection?.end(new FeedFrozen(`Nothing has come for more than ${this.#patience / 1000} s.`));
    return true;
  }

  /** @param {Connection} connection */
  async #probe(connection) {
    if (this.#probing || !this.#following.online) return;
    this.#probing = true;
    try {
      await connection.ask({ type: "ping" });
    } catch (error) {
      connection.end(new ConnectionLost(`The connection does not answer: ${said(error)}`));
    } finally {
      this.#probing = false;
    }
  }

  /** Listens for what a browser tells of the network and the page; what takes that back. */
  #tie() {
    /** @type {(() => void)[]} */
    const untie = [];
    /**
     * @param {any} target
     * @param {string} name
     * @param {() => void} listener
     */
    const on = (target, name, listener) => {
      if (typeof target?.addEventListener !== "function") return;
      target.addEventListener(name, listener);
      untie.push(() => target.removeEventListener(name, listener));
    };
    const { document, window } = /** @type {any} */ (globalThis);
    on(window, "online", () => this.wake());
    on(window, "pageshow", () => this.wake());
    on(window, "pagehide", () => void this.#save());
    on(document, "visibilitychange", () => {
      if (document.visibilityState === "visible") this.wake();
      else void this.#save();
    });
    return untie;
  }

  /** @returns {Promise<typeof WebSocket>} */
  async #webSocket() {
    const given = this.#options.WebSocket ?? globalThis.WebSocket;
    if (given === undefined) {
      throw new Ended(0, "This runtime has no WebSocket: give one, `new Client(url, token, { WebSocket })`, as of `ws`");
    }
    return given;
  }

  // The store

  #keep() {
    this.#keeper.changed = true;
  }

  async #load() {
    try {
      const document = await this.#keeper.load(this.#options.userId ?? null);
      if (document === null) return;
      this.#following.restore(document.user_id, this.#keeper.lastEventId, document.known_at);
      if (document.state !== null) this.#following.state.begin(document.state);
      this.cache.restore(document.cache);
      this.#outbox.restore(document.outbox);
      this.#tell();
    } catch (error) {
      this.#report(/** @type {ClientError} */ (error));
    }
  }

  /**
   * What was kept is not another user's. The token's own word is enough to let go of it.
   * @param {string | null} userId
   */
  #isFor(userId) {
    const wanted = this.#options.userId ?? userId;
    if (wanted === null || this.#following.userId === null || this.#following.userId === wanted) return;
    this.#following = new Following(wanted);
    this.#keeper.startOver(wanted);
    this.#outbox = new Outbox();
    this.#emit("invalidated", this.cache.clear());
    this.#stream.forget();
    this.#tell();
  }

  async #save() {
    try {
      await this.#keeper.save(this.#following, this.#clock(), this.cache.saved(), this.#outbox.waiting);
    } catch (error) {
      this.#report(/** @type {ClientError} */ (error));
    }
  }

  // Telling

  /** @param {ClientError} error */
  #report(error) {
    const loud = error instanceof Ended || error instanceof Rejected || !(error instanceof ConnectionLost);
    this.#options.log?.(loud ? "warning" : "info", `${error.name}: ${error.message}`);
    this.#emit("error", error);
  }

  #tell() {
    this.#stream.tell();
    if (!this.#listeners.get("state")?.size) return;
    const state = this.state;
    const text = JSON.stringify(state);
    if (text === this.#told) return;
    this.#told = text;
    this.#emit("state", state);
  }

  /**
   * @template {keyof ClientEvents} Name
   * @param {Name} name
   * @param {ClientEvents[Name]} payload
   */
  #emit(name, payload) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(payload);
      } catch (error) {
        // The program's, and no reason not to go on: it surfaces where uncaught errors do.
        setTimeout(() => {
          throw error;
        });
      }
    }
  }
}

/** @param {unknown} error */
function unlessOffline(error) {
  if (!(error instanceof Offline)) throw error;
}

/** @param {unknown} error */
function said(error) {
  return error instanceof Error ? error.message : String(error);
}

/** A name for the device. Not a secret: not every runtime has `crypto.randomUUID`. */
function randomId() {
  return Array.from({ length: 4 }, () => Math.random().toString(36).slice(2, 10)).join("-");
}

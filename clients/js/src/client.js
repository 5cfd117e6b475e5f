// The client: live momentum data of one user, also offline.
//
// It connects, reconnects for as long as it is open, and keeps its position. Every failure is a typed error, passed to
// listeners of "error" and to `log`; nothing is printed.

import { someKeys } from "./acknowledging.js";
import { listenToBrowser } from "./browser.js";
import { address, checkNames, connect, fresh, isOpen, randomId, subject, webSocket, without } from "./connection.js";
import {
  ClientError,
  ConnectionLost,
  Ended,
  FeedFrozen,
  Gap,
  Offline,
  Rejected,
  RequestFailed,
  StoreFailed,
} from "./errors.js";
import { pause, verdict } from "./protocol.js";
import { Replica } from "./replica.js";
import { Reporter } from "./reporter.js";
import { VERSION } from "./version.js";

/** @import { Event, Resync, State } from "./protocol.js" */
/** @import { Momentum } from "./messages.js" */
/** @import { Store } from "./store.js" */
/** @import { Connection } from "./connection.js" */

/**
 * The arguments of listeners.
 * @typedef {object} ClientEvents
 * @property {Event} event a committed change
 * @property {Resync} resync the stream starts afresh: events before it may be missing
 * @property {State} state the state has changed
 * @property {string[]} invalidated cache keys that were just dropped
 * @property {ClientError} error something failed; the client continues, unless the error is Ended
 */

/**
 * Options of a client.
 * @typedef {object} Options
 * @property {string | null} [userId] the user to follow, if the token names none or acts for another user
 * @property {string} [clientId] name of the device; a second connection with the same user and name replaces the first
 * @property {string[]} [channels] channels beside the user's own
 * @property {Store | null} [store] keeps position, state, persistent cache entries and outbox across restarts
 * @property {number} [patience] milliseconds without a message after which the feed counts as frozen (heartbeats: 25 s)
 * @property {(level: "info" | "warning", message: string) => void} [log]
 * @property {() => number} [clock] milliseconds since 1970
 * @property {any} [WebSocket] for runtimes without one, such as that of the package `ws`
 * @property {typeof fetch} [fetch]
 * @property {AbortSignal} [signal] closes the client
 */

const TICK_MS = 1_000;
const STEADY_MS = 5_000;
const FORBIDDEN = [403, 4403];
const ABOUT_THE_ENTRY = ["not_found", "forbidden"]; // what the server says of the notification, and will say again
const LATER = 7; // as after so many failures: the longest pause
const ACKNOWLEDGE_AFTER_MS = 100; // servers take 20 messages a second

/** A user's connection to a Momentum Sync server, and the user's data. */
export class Client {
  #url;
  #token;
  #options;
  #patience;
  #clock;
  #wanted;
  #replica;
  /** @type {string[]} */
  #askedFor = [];
  #tokenSent = "";
  /** @type {Connection | null} */
  #connection = null;
  #reporter;
  /** @type {(() => void) | null} */
  #hurry = null;
  #woken = false;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #ticker;
  #untie = () => {};
  #started = false;
  #open = false;
  #closing = new AbortController();
  /** @type {Set<string>} */
  #toAcknowledge = new Set();
  /** @type {Set<string>} */
  #underWay = new Set();

  /**
   * @param {string} url the server's root
   * @param {string | (() => string | Promise<string>)} token a token, or a function that returns one: it is called for
   * each connection, and before the token expires
   * @param {Options} [options]
   */
  constructor(url, token, options = {}) {
    const target = address(url, {}, []);
    const userId = options.userId?.toLowerCase() ?? null;
    this.#url = url;
    this.#token = token;
    this.#options = { clientId: randomId(), ...options, userId };
    this.#patience = options.patience ?? 60_000;
    this.#clock = options.clock ?? Date.now;
    this.#wanted = checkNames(options.channels ?? []);
    this.#reporter = new Reporter(options.log, () => this.#replica.state);
    this.#replica = new Replica(
      options.store ?? null,
      userId,
      this.#clock,
      (error) => this.#reporter.report(error),
      (keys) => this.#reporter.emit("invalidated", keys),
    );
    if (isOpen(target)) {
      this.#reporter.warn(`${url} is not encrypted: whoever is on the way reads the token and the data; use https://`);
    }
  }

  // The program's side

  /** Read the store and connect, in the background. Returns the client. */
  start() {
    if (this.#started) throw new Error("A client can be started only once.");
    this.#started = this.#open = true;
    this.#ticker = setInterval(() => this.#tick(), Math.min(TICK_MS, this.#patience / 4));
    this.#untie = listenToBrowser(
      () => this.reconnectNow(),
      () => void this.#replica.save(),
      () => this.#connection?.end(new ConnectionLost("The browser is offline.")),
    );
    const { signal } = this.#options;
    const close = () => void this.close();
    signal?.addEventListener("abort", close);
    this.#closing.signal.addEventListener("abort", () => signal?.removeEventListener("abort", close));
    if (signal?.aborted) close();
    else void this.#run();
    return this;
  }

  /** Close the connection, save the position, and close the store. */
  async close() {
    if (this.#stop() || this.#replica.keeper.changed) await this.#replica.save();
    await this.#replica.keeper.close().catch((error) => this.#reporter.report(error));
  }

  /**
   * Log out: close the client and delete everything of the user, here and in the store. Changes that are not sent yet
   * are lost; call `flush` first to send them. Throws StoreFailed if the store cannot be cleared.
   */
  async clear() {
    this.#stop();
    try {
      await this.#replica.clear();
    } finally {
      this.#tell();
      await this.close();
    }
  }

  /** Ends the connection for good; whether there was any need to. */
  #stop() {
    if (!this.#open) return false;
    this.#end();
    this.#connection?.end(new ConnectionLost("The program has closed the connection."));
    this.#hurry?.();
    this.#replica.protocol.lost(this.#clock());
    this.#tell();
    this.#replica.stream.finish(null);
    return true;
  }

  #end() {
    this.#open = false;
    this.#closing.abort();
    clearInterval(this.#ticker);
    this.#untie();
  }

  /** Fetched values, until the server invalidates them. */
  get cache() {
    return this.#replica.cache;
  }

  /**
   * The current state. Notifications marked as read are not in it, even before the server knows. The object stays the
   * same until something changes.
   * @returns {State}
   */
  get state() {
    return this.#reporter.state;
  }

  /** `state` as a function, for React: `useSyncExternalStore(client.onStateChange, client.getState)`. */
  getState = () => this.state;

  /**
   * Call the listener when the state has changed. Returns a function that removes it.
   * @param {() => void} listener
   * @returns {() => void}
   */
  onStateChange = (listener) => this.addEventListener("state", listener);

  /** The user that the client follows; null until it is known, and for a connection without a user. */
  get userId() {
    return this.#replica.protocol.userId || null;
  }

  /** The channels that the server confirmed last. */
  get channels() {
    return [...this.#replica.protocol.channels];
  }

  /** The number of notifications marked as read that the server has not confirmed yet. */
  get pendingCount() {
    return this.#replica.outbox.waiting.length;
  }

  /**
   * The client's position, as the id of an event; null before the first snapshot. Send it as the header
   * `Last-Event-ID` with your own requests to `/sync/…`: the answer then is not older than what the client has received,
   * whichever gateway answers.
   */
  get position() {
    return this.#replica.protocol.position;
  }

  /** Milliseconds by which the server's feed was late at the last heartbeat. */
  get lagMs() {
    return this.#replica.protocol.lagMs;
  }

  /**
   * Call the listener with events of this kind. Returns a function that removes it.
   * @template {keyof ClientEvents} Name
   * @param {Name} name
   * @param {(payload: ClientEvents[Name]) => void} listener
   */
  addEventListener(name, listener) {
    this.#reporter.add(name, listener);
    return () => this.removeEventListener(name, listener);
  }

  /**
   * Remove a listener.
   * @template {keyof ClientEvents} Name
   * @param {Name} name
   * @param {(payload: ClientEvents[Name]) => void} listener
   */
  removeEventListener(name, listener) {
    this.#reporter.remove(name, listener);
  }

  /**
   * Return an iterator of every further event, in commit order, across disconnects, and of each `Resync`.
   *
   * An event counts as processed once the next one is requested, or after `ack`: with a store, a restarted program, and
   * the next iterator, continue after it. Throws Ended if the client does not reconnect any more. A second iterator
   * ends the first.
   * @returns {AsyncIterableIterator<Event | Resync>}
   */
  events() {
    return this.#replica.stream.begin();
  }

  /**
   * Acknowledge an event as processed, for a program that leaves its loop and does not want it again.
   * @param {Event | Resync} event
   */
  ack(event) {
    this.#replica.stream.ack(event);
  }

  /**
   * Wait until the state is current. Throws Ended, or Offline if the client was closed.
   * @returns {Promise<State>}
   */
  async waitUntilLive() {
    await this.#replica.stream.surely(() => this.#replica.protocol.status === "live");
    return this.state;
  }

  /**
   * Mark a notification as read. Resolves once the mark is stored; the server receives it now or later. A refusal is
   * passed to listeners of "error". Throws TypeError if the id is not a UUID, StoreFailed if the mark could not be stored: it
   * is sent for as long as the program runs, and the store is retried.
   * @param {string} notificationId
   */
  async markNotificationRead(notificationId) {
    this.#replica.outbox.add(notificationId);
    this.#replica.keep();
    this.#tell();
    const kept = await this.#replica.save();
    this.#post();
    if (!kept && this.#replica.keeper.keeps) {
      throw new StoreFailed("The mark could not be stored and would be lost if the program ended now.");
    }
  }

  /** Wait until the server has confirmed every mark. Throws as `waitUntilLive`. */
  async flush() {
    await this.#replica.stream.surely(() => this.#replica.outbox.waiting.length === 0);
  }

  /**
   * Return the momentum with its breakdown and count, which events do not carry. Throws Offline or RequestFailed.
   * @returns {Promise<Momentum>}
   */
  async requestMomentumUpdate() {
    const { data } = await this.#ask({ type: "request_momentum_update" });
    if (this.#replica.readAgain(data)) this.#tell();
    return data;
  }

  /**
   * Subscribe to channels, now and on each reconnect; offline, with the next connection. Throws RequestFailed if one of
   * them is not granted; then none is subscribed to. Throws RangeError beyond 500 channels.
   * @param {string[]} channels
   */
  async subscribe(channels) {
    const held = this.#replica.protocol.online ? this.#replica.protocol.channels : this.#wanted;
    const fresh = checkNames(channels, this.#wanted).filter((one) => !held.includes(one) || !this.#wanted.includes(one));
    this.#wanted = [...new Set([...this.#wanted, ...fresh])];
    if (fresh.length === 0) return;
    try {
      await this.#ask({ type: "subscribe", channels: fresh });
    } catch (error) {
      if (error instanceof Offline) return;
      this.#wanted = without(this.#wanted, fresh);
      throw error;
    }
  }

  /**
   * Unsubscribe from channels.
   * @param {string[]} channels
   */
  async unsubscribe(channels) {
    const names = checkNames(channels);
    this.#wanted = without(this.#wanted, names);
    await this.#ask({ type: "unsubscribe", channels: names }).catch((error) => {
      if (!(error instanceof Offline)) throw error;
    });
  }

  /** Reconnect without delay, and check an open socket, after the network or the machine was away. */
  reconnectNow() {
    const connection = this.#connection;
    if (this.#hurry !== null) this.#hurry();
    else this.#woken = connection === null; // it is connecting: if that fails, it does not wait
    if (connection !== null && !this.#checkFrozen()) void this.#once("probe", () => this.#probe(connection));
  }

  // Connecting and reconnecting

  async #run() {
    await this.#replica.load();
    if (!this.#open) return;
    this.#tell();
    let failures = 0;
    while (this.#open) {
      const began = performance.now();
      const error = await this.#connect();
      if (!this.#open) return;
      const now = this.#clock();
      failures = this.#replica.protocol.online && performance.now() - began > STEADY_MS ? 1 : failures + 1;
      this.#replica.protocol.lost(now);
      this.#replica.outbox.lost();
      this.#reporter.report(error);
      if (error instanceof Ended) {
        this.#end();
        if (FORBIDDEN.includes(error.code)) this.#replica.forget();
        this.#replica.protocol.ended(now);
        await this.#replica.save();
        this.#tell();
        this.#replica.stream.finish(error);
        return;
      }
      this.#tell();
      const code = error instanceof Rejected ? error.status : error instanceof ConnectionLost ? error.code : null;
      if (code !== null && verdict(code) === "later") failures = Math.max(failures, LATER);
      if (!(error instanceof FeedFrozen)) await this.#pause(pause(failures, Math.random()));
      while (this.#open && this.#replica.stream.filled) await this.#pause(TICK_MS);
    }
  }

  /**
   * @param {number} milliseconds
   * @returns {Promise<void>}
   */
  #pause(milliseconds) {
    return new Promise((resolve) => {
      if (this.#woken) {
        this.#woken = false;
        resolve();
        return;
      }
      const timer = setTimeout(() => this.#hurry?.(), milliseconds);
      this.#hurry = () => {
        clearTimeout(timer);
        this.#hurry = null;
        resolve();
      };
    });
  }

  /**
   * Run one connection to its end, and return the error that ended it.
   * @returns {Promise<ClientError>}
   */
  async #connect() {
    try {
      const WebSocket = webSocket(this.#options.WebSocket);
      const token = (this.#tokenSent = await fresh(this.#token));
      if (!this.#open) return new ConnectionLost("The program has closed the connection.");
      this.#replica.isFor(subject(token));
      this.#askedFor = [...this.#wanted];
      const { userId, clientId, fetch = globalThis.fetch } = this.#options;
      const last = this.#replica.protocol.connecting();
      const query = { user_id: userId, client_id: clientId, last_event_id: last, sdk: `js-${VERSION}` };
      const environment = { WebSocket, fetch, url: this.#url, userId, signal: this.#closing.signal };
      const connection = await connect(address(this.#url, query, this.#askedFor), token, environment);
      this.#replica.opened(performance.now());
      this.#woken = false;
      this.#connection = connection;
      if (!this.#open) connection.end(new ConnectionLost("The program has closed the connection."));
      connection.listen((text) => this.#take(text, connection));
      const error = await connection.ended;
      if (error instanceof Gap) this.#replica.greeted(); // it may be of another user
      return error;
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
    for (const output of this.#replica.receive(text, performance.now())) {
      if (output.kind === "answer") {
        this.#answered(output.message, connection);
        continue;
      }
      let persistent = false;
      if (output.kind === "resync") {
        this.#reporter.emit("invalidated", this.cache.clear());
        persistent = true;
      } else if (output.kind === "invalidated") {
        persistent = this.cache.drop(output.keys);
        this.#reporter.emit("invalidated", output.keys);
      }
      if (!this.#open) return; // a listener has closed it
      this.#replica.stream.add(output);
      if (output.kind === "event" || output.kind === "resync") this.#reporter.emit(output.kind, output);
      const kept = persistent ? this.#replica.save() : Promise.resolve();
      if (output.kind === "invalidated") void kept.then(() => this.#isGone(output.keys));
    }
    if (this.#replica.protocol.state.unsure) void this.#once("read again", () => this.#readAgain());
    this.#tell();
    if (this.#replica.stream.full) {
      connection.end(new ConnectionLost("The program does not read its events; the client reconnects when it does."));
    }
  }

  /**
   * @param {any} message
   * @param {Connection} connection
   */
  #answered(message, connection) {
    const { type, ref, refused = [] } = message;
    if (type !== "error") this.#reporter.reportRefused(refused);
    if (type === "token_expiring") {
      void this.#once("renew", () => this.#renew());
    } else if (type === "subscription_confirmed" && ref === undefined) {
      this.#replica.greeted();
      void this.#greeted();
    } else if (type === "notification_marked_read") {
      this.#replica.read(message.notification_id, true);
    } else if (type === "error" && typeof ref === "string" && ref.startsWith("read:")) {
      this.#refused(ref.slice("read:".length), message);
    } else if (!connection.answered(message) && type === "error") {
      this.#reporter.report(new RequestFailed(message.code, message.error));
    }
  }

  /**
   * @param {string} id
   * @param {any} message
   */
  #refused(id, message) {
    this.#reporter.report(new RequestFailed(message.code, message.error));
    if (!ABOUT_THE_ENTRY.includes(message.code)) {
      this.#replica.outbox.later(id);
      return;
    }
    this.#replica.read(id, message.code === "not_found");
    this.#tell();
  }

  // Out

  /**
   * @param {Record<string, unknown>} message
   * @returns {Promise<any>}
   */
  async #ask(message) {
    if (this.#connection === null || !this.#replica.protocol.online) throw new Offline("The client is not connected.");
    return this.#connection.ask(message);
  }

  /** Sends the marks in the outbox, a few at a time. */
  #post() {
    const connection = this.#connection;
    if (connection === null || !this.#replica.protocol.online) return;
    for (const id of this.#replica.outbox.take(performance.now())) {
      connection.send({ type: "mark_notification_read", notification_id: id, ref: `read:${id}` });
    }
  }

  /** Correct the subscriptions if the program changed its wishes while connecting. */
  async #greeted() {
    const more = this.#wanted.filter((channel) => !this.#askedFor.includes(channel));
    const less = this.#askedFor.filter((channel) => !this.#wanted.includes(channel));
    if (more.length > 0) await this.#ask({ type: "subscribe", channels: more }).catch((error) => this.#reporter.report(error));
    if (less.length > 0) await this.#ask({ type: "unsubscribe", channels: less }).catch((error) => this.#reporter.report(error));
    this.#post();
  }

  /**
   * Acknowledge keys, several of the next moment in one message.
   * @param {string[]} keys
   */
  #isGone(keys) {
    for (const key of keys) this.#toAcknowledge.add(key);
    void this.#once("acknowledge", async () => {
      await new Promise((resolve) => setTimeout(resolve, ACKNOWLEDGE_AFTER_MS));
      const gone = someKeys(this.#toAcknowledge);
      for (const key of gone) this.#toAcknowledge.delete(key);
      if (gone.length > 0) this.#connection?.send({ type: "cache_invalidation_ack", cache_keys: gone });
    });
  }

  /** Read the momentum where events do not determine it, until the answer is no older than they. */
  async #readAgain() {
    while (this.#replica.protocol.state.unsure && this.#replica.protocol.online) {
      await this.requestMomentumUpdate().catch((error) => this.#reporter.report(error));
      if (this.#replica.protocol.state.unsure) await new Promise((resolve) => setTimeout(resolve, TICK_MS));
    }
  }

  /** A fresh token without reconnecting. Without one the server ends the connection, and it is asked for again. */
  async #renew() {
    try {
      const token = await fresh(this.#token);
      if (!this.#open || token === this.#tokenSent) return; // it would be expiring at once again
      this.#tokenSent = token;
      await this.#ask({ type: "authenticate", token });
    } catch (error) {
      this.#reporter.report(/** @type {ClientError} */ (error));
    }
  }

  /**
   * Run work in the background, unless it is running already.
   * @param {string} name
   * @param {() => Promise<void>} work
   */
  async #once(name, work) {
    if (this.#underWay.has(name)) return;
    this.#underWay.add(name);
    try {
      await work();
    } finally {
      this.#underWay.delete(name);
    }
  }

  // The clock

  #tick() {
    if (this.#connection !== null) this.#checkFrozen();
    if (this.#toAcknowledge.size > 0) this.#isGone([]);
    this.#post();
    if (!this.#replica.loaded) void this.#once("load", () => this.#replica.loadAgain());
    else if (this.#replica.keeper.isDue(performance.now())) void this.#replica.save();
  }

  /** Ends the connection if nothing was received for longer than `patience`, as after a sleep of the machine. */
  #checkFrozen() {
    if (!this.#replica.frozen(performance.now(), this.#patience)) return false;
    this.#connection?.end(new FeedFrozen(`Nothing was received for more than ${this.#patience / 1000} s.`));
    return true;
  }

  /** @param {Connection} connection */
  async #probe(connection) {
    try {
      await connection.ask({ type: "ping" });
    } catch (error) {
      connection.end(new ConnectionLost(`The connection does not answer: ${said(error)}`));
    }
  }

  #tell() {
    this.#replica.stream.tell();
    this.#reporter.tellState();
  }
}

/** @param {unknown} error */
function said(error) {
  return error instanceof Error ? error.message : String(error);
}

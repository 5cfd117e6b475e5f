// The SDK of Momentum Sync, for browsers, Node and React Native.

export { Cache } from "./cache.js";
export { Client } from "./client.js";
export {
  ClientError,
  ConnectionLost,
  Ended,
  FeedFrozen,
  FetchFailed,
  Gap,
  NotUnderstood,
  Offline,
  Rejected,
  RequestFailed,
  StoreFailed,
  TokenUnavailable,
} from "./errors.js";
export { UserState } from "./state.js";
export { LocalStore } from "./store.js";

/** @typedef {import("./client.js").ClientEvents} ClientEvents */
/** @typedef {import("./client.js").Options} Options */
/** @typedef {import("./cache.js").Entry} Entry */
/** @typedef {import("./protocol.js").Event} Event */
/** @typedef {import("./protocol.js").Resync} Resync */
/** @typedef {import("./protocol.js").State} State */
/** @typedef {import("./protocol.js").Status} Status */
/** @typedef {import("./messages.js").Fields} Fields */
/** @typedef {import("./messages.js").Intervention} Intervention */
/** @typedef {import("./messages.js").Momentum} Momentum */
/** @typedef {import("./messages.js").Notification} Notification */
/** @typedef {import("./messages.js").Saved} Saved */
/** @typedef {import("./store.js").Store} Store */

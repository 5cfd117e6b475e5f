// Acknowledgements of cache keys that were dropped.

/** The protocol's limit for `cache_keys`. */
const KEYS_A_MESSAGE = 500;
/** The server ends a connection that sends a message of more than 64 KiB. */
const BYTES_A_MESSAGE = 60 * 1024;

/**
 * Return keys for one message, at least one if there are any.
 * @param {Iterable<string>} keys
 */
export function someKeys(keys) {
  const some = [];
  let size = 0;
  for (const key of keys) {
    size += new TextEncoder().encode(JSON.stringify(key)).length + 1;
    if (some.length === KEYS_A_MESSAGE || (some.length > 0 && size > BYTES_A_MESSAGE)) break;
    some.push(key);
  }
  return some;
}

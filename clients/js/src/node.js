// For Node: a store in a file.

import { mkdir, readFile, rename, open } from "node:fs/promises";
import { dirname } from "node:path";

/** A store in a file, replaced as a whole. Only its owner can read it: what is in it is a user's. */
export class FileStore {
  #path;

  /**
   * @param {string} path
   */
  constructor(path) {
    this.#path = path;
  }

  async load() {
    try {
      return await readFile(this.#path, "utf8");
    } catch (error) {
      if (/** @type {NodeJS.ErrnoException} */ (error).code === "ENOENT") return null;
      throw error;
    }
  }

  /** @param {string} text */
  async save(text) {
    await mkdir(dirname(this.#path), { recursive: true });
    const file = await open(`${this.#path}.new`, "w", 0o600);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(`${this.#path}.new`, this.#path);
  }
}

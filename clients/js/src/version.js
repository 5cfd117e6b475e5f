// The version of this package, which the server counts among its clients. A test compares it with package.json.

export const VERSION = "0.1.0";

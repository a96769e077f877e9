/** What a reload must not lose. Where the browser keeps nothing, the page works on without. */

const PREFIX = "onereward.";

export function read(name) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return null;
  }
}

/** Keep a value, or forget it: null. */
export function write(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Full or forbidden: the answer is still on the page.
  }
}

/** Forget what begins with `prefix`, but for the names in `kept`. */
export function forget(prefix, kept) {
  try {
    for (const name of Object.keys(localStorage)) {
      if (name.startsWith(PREFIX + prefix) && !kept.has(name.slice(PREFIX.length))) localStorage.removeItem(name);
    }
  } catch {
    // As above.
  }
}

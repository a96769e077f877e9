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

/** The names that begin with `prefix`, without it. */
export function namesAfter(prefix) {
  try {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX + prefix));
    return names.map((name) => name.slice(PREFIX.length + prefix.length));
  } catch {
    return [];
  }
}

/** Call `changed` when another tab keeps another value under `name`, or forgets it. */
export function watch(name, changed) {
  window.addEventListener("storage", ({ key }) => key === PREFIX + name && changed());
}

/** Elements from plain data. Text is only ever text: nothing here parses HTML. */

export const byId = (id) => document.getElementById(id);

/**
 * Make an element.
 *
 * @param {string} tag
 * @param {object} attributes `class`, `aria-label`, ...; null, undefined and false leave one out, true gives "".
 * @param {...(Node|string)} children strings become text.
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export const button = (attributes, ...children) => element("button", { type: "button", ...attributes }, ...children);

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const pressed = (node, on) => node.setAttribute("aria-pressed", on ? "true" : "false");

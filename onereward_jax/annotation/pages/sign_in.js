/** Who is at the page: by name on the machine itself, else by token. */

import { ApiError, call } from "./api.js";
import { byId, setText } from "./dom.js";
import { keptBy } from "./outbox.js";

const HELP = {
  name: "Your answers are kept under it: take the same name every time.",
  token: "The one that you got from the organiser.",
};
const RETRY = 2_000;

/**
 * Return what `path` ("me" or "organiser") answers, after signing in where that is needed.
 *
 * @returns {Promise<object>}
 */
export async function signIn(path) {
  for (;;) {
    try {
      const answer = await call(`/api/${path}`);
      byId("alert").hidden = true;
      byId("sign-in").hidden = true; // somebody signed in in another tab
      return answer;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401 || error.status === 403) {
        if (error.status === 403) alert(error.message);
        await ask(error.body.needs_token);
      } else {
        alert(error.passing ? "The server doesn't answer. Trying again." : error.message);
        await new Promise((resolve) => setTimeout(resolve, RETRY));
      }
    }
  }
}

function alert(text) {
  setText(byId("alert"), text);
  byId("alert").hidden = false;
}

/** Show the form until the server takes what it is given. */
function ask(needsToken = true) {
  const kind = needsToken ? "token" : "name";
  const value = byId("sign-in-value");
  setText(byId("sign-in-label"), kind === "name" ? "Your name" : "Your token");
  const kept = keptBy().join(", ");
  setText(byId("sign-in-help"), kept ? `${HELP[kind]} Answers of ${kept} are kept in this browser until they sign in.` : HELP[kind]);
  value.type = kind === "name" ? "text" : "password";
  value.autocomplete = kind === "name" ? "username" : "current-password";
  value.name = kind;
  const work = byId("work");
  work.hidden = true;
  byId("sign-in").hidden = false;
  value.focus();
  return new Promise((resolve) => {
    byId("sign-in-form").onsubmit = async (event) => {
      event.preventDefault();
      try {
        await call("/api/sign-in", { [kind]: value.value.trim() });
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        alert(error.passing ? "The server doesn't answer: try again." : error.message);
        value.focus();
        return;
      }
      byId("alert").hidden = true;
      byId("sign-in").hidden = true;
      value.value = "";
      work.hidden = false;
      resolve();
    };
  });
}

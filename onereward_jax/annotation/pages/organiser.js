/** The organiser's page: who has done how much, how fast, and how well people agree. */

import { ApiError, call } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { signIn } from "./sign_in.js";

const EVERY = 10_000; // milliseconds

const missing = (value) => value === null || value === undefined;
const number = (value, digits = 0) => (missing(value) ? "–" : value.toFixed(digits));
const percent = (value) => (missing(value) ? "–" : `${Math.round(100 * value)} %`);
const words = (name) => name.replaceAll("_", " ");

/** A row: the first cell names it. */
const row = ([name, ...cells]) =>
  element("tr", {}, element("th", { scope: "row" }, element("bdi", {}, name)), ...cells.map((cell) => element("td", {}, cell)));

function duration(hours) {
  if (!Number.isFinite(hours)) return "–";
  return hours < 1 ? `${Math.ceil(60 * hours)} min` : `${hours.toFixed(1)} h`;
}

function show({ annotators, total, done, besides, per_hour: perHour, agreement = {} }) {
  setText(byId("done"), `${done} of ${total}`);
  setText(byId("per-hour"), number(perHour));
  setText(byId("left"), duration(done >= total ? 0 : (total - done) / (perHour ?? NaN)));
  byId("progress").max = total || 1;
  byId("progress").value = done;
  const but = besides === 1 ? "1 doesn't count here: it is" : `${besides} don't count here: they are`;
  setText(byId("besides"), `Of ${done + besides} answers, ${but} to repeats, gold items, or records that had enough.`);
  byId("besides").hidden = !besides;
  const slowestLast = [...annotators].sort((one, other) => (one.seconds_median ?? Infinity) - (other.seconds_median ?? Infinity));
  const rows = slowestLast.map((one) =>
    row([
      one.name, `${one.done}`, number(one.per_hour), number(one.seconds_median, 1), percent(one.self_agreement),
      percent(one.gold_right),
    ]),
  );
  byId("annotators").replaceChildren(...rows);
  byId("agreement-section").hidden = !Object.keys(agreement).length;
  byId("agreement").replaceChildren(...Object.entries(agreement).map(([name, alpha]) => row([words(name), number(alpha, 2)])));
}

async function main() {
  show(await signIn("organiser"));
  byId("work").hidden = false;
  const alert = byId("alert");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, EVERY));
    if (document.hidden) continue;
    try {
      show(await call("/api/organiser"));
      alert.hidden = true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401 || error.status === 403) show(await signIn("organiser"));
      else {
        setText(alert, "The server doesn't answer: these are the last figures that it gave.");
        alert.hidden = false;
      }
    }
  }
}

main();

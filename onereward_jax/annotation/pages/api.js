/** Requests to the server, and what may come instead of its answer. */

const TIMEOUT = 20_000; // milliseconds

/** A refusal (status of the response), or no answer of our server (status 0). */
export class ApiError extends Error {
  constructor(status, message, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/** Send JSON (GET without `body`) and return the JSON that comes back. */
export async function call(path, body) {
  const options = { signal: AbortSignal.timeout(TIMEOUT), headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  let answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch {
    answer = null;
  }
  if (response?.ok && answer) return answer;
  // A proxy's page says nothing of what the server thinks of the request, whatever its status.
  if (typeof answer?.error !== "string") throw new ApiError(0, "The server doesn't answer.");
  throw new ApiError(response.status, answer.error, answer);
}

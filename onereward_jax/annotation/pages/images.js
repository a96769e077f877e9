/** Images, loaded and decoded before they are shown. */

const FIRST_WAIT = 500; // milliseconds
const LONGEST_WAIT = 8_000;
const TIMEOUT = 20_000;

/**
 * Load an image, again and again until it comes or the server says that there is none.
 *
 * @param {string} url
 * @param {function(): boolean} failed called before every new try; false gives up.
 * @returns {Promise<HTMLImageElement>} decoded, or without size where it can't be.
 */
export async function load(url, failed) {
  let came = 0; // so often it came but couldn't be decoded
  for (let wait = FIRST_WAIT; ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
    const image = new Image();
    image.decoding = "sync"; // painted together with the rest of the item
    image.draggable = false;
    image.src = url;
    try {
      await image.decode();
      return image;
    } catch {
      const status = await statusOf(url);
      if (status === 200) came++;
      if (status === 404 || came > 1 || !failed()) return image;
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** The status with which our server answers: images tell none. 0: no answer, or that of a proxy. */
async function statusOf(url) {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT) });
    const ours = response.ok || (response.headers.get("content-type") ?? "").startsWith("application/json");
    await response.blob();
    return ours ? response.status : 0;
  } catch {
    return 0;
  }
}

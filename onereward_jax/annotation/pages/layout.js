/** Where images and questions go, so that the images are as large as the window allows. Knows no page. */

export const GAP = 8;
const SMALLEST = 120; // pixels: a smaller image isn't worth comparing; the stage scrolls

/**
 * Choose columns, where the choices of an image stand, and where the questions stand.
 *
 * @param {object} given
 *   width, height: of the area, in CSS pixels;
 *   panes: images, the source included;  aspect: width over height of an image;
 *   below: {width, height} of a bar of choices below an image;  beside: the same of one beside it;
 *   side, bottom, cell: {width, height} that the questions need at the side, at the bottom, or in a cell of the grid.
 * @returns {{columns: number, rows: number, bars: "below"|"beside", panel: "side"|"bottom"|"cell", area: number}}
 */
export function arrange(given) {
  let best = null;
  for (const panel of ["side", "bottom", "cell"]) {
    const width = given.width - (panel === "side" ? given.side.width + GAP : 0);
    const height = given.height - (panel === "bottom" ? given.bottom.height + GAP : 0);
    if (panel === "side" && given.height < given.side.height) continue;
    const cells = given.panes + (panel === "cell" ? 1 : 0);
    for (let columns = 1; columns <= cells; columns++) {
      const rows = Math.ceil(cells / columns);
      const cell = { width: (width - GAP * (columns - 1)) / columns, height: (height - GAP * (rows - 1)) / rows };
      if (panel === "cell" && (cell.width < given.cell.width || cell.height < given.cell.height)) continue;
      for (const bars of ["below", "beside"]) {
        const bar = given[bars];
        const room =
          bars === "below"
            ? { width: cell.width, height: cell.height - bar.height }
            : { width: cell.width - bar.width, height: cell.height };
        if (bars === "below" ? cell.width < bar.width : cell.height < bar.height) continue;
        const shown = Math.min(room.width, room.height * given.aspect);
        if (shown < SMALLEST) continue;
        const area = (shown * shown) / given.aspect;
        if (!best || area > 1.02 * best.area) best = { columns, rows, bars, panel, area };
      }
    }
  }
  return best ?? { columns: 1, rows: given.panes, bars: "below", panel: "bottom", area: 0 };
}

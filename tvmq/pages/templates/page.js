// What is under the pointer, a mark of a plot or a row, is marked wherever it is shown.
for (const item of document.querySelectorAll("[data-row]")) {
  const same = document.querySelectorAll(`[data-row="${item.dataset.row}"]`);
  const mark = on => same.forEach(e => e.classList.toggle("chosen", on));
  item.addEventListener("mouseenter", () => mark(true));
  item.addEventListener("mouseleave", () => mark(false));
}
// A click on a heading sorts by it, largest first; another one turns the order around.
for (const head of document.querySelectorAll(".sortable th")) {
  let down = false;
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const key = row => row.cells[head.cellIndex].textContent.replaceAll(",", "");
    down = !down;
    [...body.rows]
      .sort((a, b) => key(a).localeCompare(key(b), "en", {numeric: true}) * (down ? -1 : 1))
      .forEach(row => body.append(row));
  });
}

"use strict";
const thumbnails = JSON.parse(document.getElementById("thumbnails").textContent);

// Light or dark: the system's choice, until the button is pressed.
const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  document.dispatchEvent(new Event("themechange"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  document.dispatchEvent(new Event("themechange")));

// <img data-thumb="12">: each image stands in the file once, however often it is shown.
const fillThumbnails = (root) => {
  for (const image of root.querySelectorAll("img[data-thumb]"))
    if (!image.src) image.src = thumbnails[image.dataset.thumb] ?? "";
};
fillThumbnails(document);

// <table class="sortable">: a heading with a button sorts; cells may carry data-value.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text);
  return text !== "" && !Number.isNaN(number) ? number : text;
};
const compareValues = (a, b) =>
  typeof a === typeof b
    ? (typeof a === "number" ? a - b : a.localeCompare(b))
    : (typeof a === "number" ? -1 : 1);
for (const table of document.querySelectorAll("table.sortable"))
  for (const button of table.querySelectorAll("thead th button"))
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const rising = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (rising ? 1 : -1) *
        compareValues(valueOf(a, heading.cellIndex), valueOf(b, heading.cellIndex)));
      table.tBodies[0].append(...rows);
    });

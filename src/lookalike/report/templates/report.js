const data = JSON.parse(document.getElementById("data").textContent);
const figures = JSON.parse(document.getElementById("figures").textContent);
const { classes, names, labels, thumbs } = data.images;
const PAGE = 10;
const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const count = (number) => number.toLocaleString("en-US");
const className = (image) => classes[labels[image]] ?? "";

// --- Queries -------------------------------------------------------------------------------

const queries = data.queries.map(([image, rank, precision, relevant, change, results]) => {
  const found = [];
  for (let i = 0; i < results.length; i += 2) found.push({ image: results[i], similarity: results[i + 1] });
  const words = `${names[image]}\n${className(image)}`.toLowerCase();
  return { image, rank, precision, relevant, change, found, words };
});
const isRight = (query, result) => labels[query.image] === labels[result.image];
const answerable = (query) => data.labelled && query.relevant > 0;
const isWrong = (query) => answerable(query) && query.rank !== 1;
const FILTERS = {
  worst: answerable,
  wrong: isWrong,
  fixed: (query) => query.change === 1,
  broken: (query) => query.change === -1,
  unanswerable: (query) => !answerable(query),
  all: () => true,
};
// A late first right result is worse than an early one; then low average precision is.
const worstFirst = [...queries].sort((a, b) => a.rank === b.rank
  ? (a.precision ?? 2) - (b.precision ?? 2)
  : (b.rank ?? Number.MAX_VALUE) - (a.rank ?? Number.MAX_VALUE));

const confusions = data.confusions
  .map(([label, takenFor, number]) => ({ label, takenFor, number }))
  .filter(({ label, takenFor }) => queries.some((query) => confused(query, label, takenFor)));
function confused(query, label, takenFor) {
  return isWrong(query) && labels[query.image] === label && query.found.length > 0 &&
    labels[query.found[0].image] === takenFor;
}

const strips = document.getElementById("strips");
const more = document.getElementById("more");
const counted = document.getElementById("counted");
const search = document.getElementById("search");
const picker = document.getElementById("confusion");
const buttons = [...document.querySelectorAll(".choice button")];
let filter = data.labelled ? "worst" : "all";
let ofClass = null; // the number of a class that was chosen in the table
let listed = [];

const framed = (image, kind, alt) => {
  const figure = element("figure", `thumb ${kind}`);
  figure.title = className(image) ? `${className(image)}\n${names[image]}` : names[image];
  const frame = element("div", "frame");
  if (thumbs[image] >= 0) {
    const picture = element("img");
    picture.src = thumbnails[thumbs[image]];
    picture.alt = alt;
    frame.append(picture);
  } else {
    frame.append(element("span", "unseen", names[image].split("/").pop()), element("span", "hidden", alt));
  }
  figure.append(frame);
  return figure;
};

const resultFigure = (query, result, place) => {
  const verdict = !data.labelled ? "" : isRight(query, result) ? "right" : "wrong";
  const alt = [`rank ${place}`, verdict, className(result.image), `similarity ${result.similarity.toFixed(3)}`,
    names[result.image]].filter(Boolean).join(", ");
  const figure = framed(result.image, verdict, alt);
  const caption = element("figcaption");
  caption.append(element("span", "verdict-mark", { right: "✓ ", wrong: "✗ " }[verdict] ?? ""),
    result.similarity.toFixed(3));
  caption.firstChild.setAttribute("aria-hidden", "true");
  figure.append(caption, element("figcaption", "", className(result.image)));
  return figure;
};

const stripOf = (query) => {
  const item = element("li", "strip");
  const head = element("div", "head");
  const told = element("p", "muted told");
  if (className(query.image)) head.append(element("strong", "", className(query.image)));
  head.append(element("span", "muted", names[query.image]));
  if (query.change === 1) head.append(element("span", "badge right", "fixed"));
  if (query.change === -1) head.append(element("span", "badge wrong", "broken"));
  if (answerable(query)) {
    const first = query.rank === 1 ? "first result right"
      : query.rank === null ? "no right result found"
      : `first right result at rank ${count(query.rank)}`;
    told.append(`${first} · average precision ${query.precision.toFixed(2)} · ${count(query.relevant)} right in the gallery`);
  } else if (data.labelled) {
    told.append("no image of this class in the gallery");
  }
  const row = element("div", "row");
  const own = framed(query.image, "query", `query, ${className(query.image)}, ${names[query.image]}`);
  own.append(element("figcaption", "", "query"));
  const results = element("div", "results");
  results.append(...query.found.map((result, i) => resultFigure(query, result, i + 1)));
  row.append(own, results);
  item.append(head, told, row);
  return item;
};

const showMore = () => {
  const start = strips.childElementCount;
  strips.append(...listed.slice(start, start + PAGE).map(stripOf));
  const rest = listed.length - strips.childElementCount;
  more.hidden = rest === 0;
  more.textContent = `Show ${Math.min(PAGE, rest)} more of ${count(rest)}`;
};

const list = () => {
  const words = search.value.trim().toLowerCase();
  const chosen = picker?.value ? confusions[picker.value] : null;
  const from = filter === "all" ? queries : worstFirst;
  listed = from.filter((query) => FILTERS[filter](query) && (!words || query.words.includes(words)) &&
    (ofClass === null || labels[query.image] === ofClass) &&
    (!chosen || confused(query, chosen.label, chosen.takenFor)));
  for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.filter === filter);
  const number = listed.length;
  // Where only a choice of queries is in this file, how many there are of the kind in all.
  const total = ofClass !== null ? data.class_totals[ofClass] : words || chosen ? undefined : data.totals[filter];
  const many = total > number ? `${count(number)} of ${count(total)} queries, those in this file`
    : `${count(number)} ${number === 1 ? "query" : "queries"}`;
  counted.textContent = number === 0 ? "No query in this file is like this."
    : `${many}${ofClass === null ? "" : ` of class ${classes[ofClass]}`}${filter === "all" ? "" : ", worst first"}`;
  strips.replaceChildren();
  showMore();
};

const choose = (changes) => {
  ofClass = changes.ofClass ?? null;
  filter = changes.filter ?? (data.labelled ? "worst" : "all");
  search.value = changes.search ?? "";
  if (picker) picker.value = changes.confusion ?? "";
  list();
};

for (const button of buttons)
  button.addEventListener("click", () => {
    filter = button.dataset.filter;
    ofClass = null;
    list();
  });
for (const tile of document.querySelectorAll("a[data-filter]"))
  tile.addEventListener("click", () => choose({ filter: tile.dataset.filter }));
for (const tile of document.querySelectorAll("a[data-confusion]"))
  tile.addEventListener("click", () => choose({ filter: "wrong", confusion: tile.dataset.confusion }));
for (const button of document.querySelectorAll("button[data-class]"))
  button.addEventListener("click", () => {
    choose({ filter: "all", ofClass: Number(button.dataset.class) });
    document.getElementById("queries").scrollIntoView();
    counted.focus({ preventScroll: true });
  });
confusions.forEach(({ label, takenFor, number }, i) =>
  picker?.append(new Option(`${classes[label]} → ${classes[takenFor]} (${count(number)})`, i)));
picker?.addEventListener("change", () => {
  ofClass = null;
  list();
});
search.addEventListener("input", () => {
  ofClass = null;
  list();
});
more.addEventListener("click", showMore);
list();

// --- Charts --------------------------------------------------------------------------------

const styleOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const resolved = (value) => {
  if (typeof value === "string") return value.replace(/^var\((--\w+)\)$/, (_, name) => styleOf(name));
  if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(resolved);
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolved(one)]));
  return value;
};
const touch = matchMedia("(pointer: coarse)").matches;
const layoutOf = (name) => {
  const layout = resolved(figures[name].layout);
  const axis = { gridcolor: styleOf("--line"), linecolor: styleOf("--line"), zeroline: false, automargin: true };
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: styleOf("--muted") };
  return {
    ...layout, font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    hoverlabel: { bgcolor: styleOf("--raised"), bordercolor: styleOf("--line"), font: { ...font, color: styleOf("--ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    // A finger on a chart scrolls the page; a mouse may draw a frame to look closer.
    dragmode: touch ? false : name === "map" ? "pan" : "zoom",
  };
};
const drawPlots = () => {
  document.documentElement.dataset.shade = isDark() ? "dark" : "light";
  for (const plot of document.querySelectorAll(".plot")) {
    const name = plot.dataset.figure;
    Plotly.react(plot, resolved(figures[name].data), layoutOf(name), {
      responsive: true, displaylogo: false, displayModeBar: false, // the wheel scrolls the page
    });
  }
};
drawPlots();
document.addEventListener("themechange", drawPlots);

// --- The map: what a point shows -------------------------------------------------------------

const map = document.querySelector('.plot[data-figure="map"]');
const peek = document.getElementById("peek");
const showPeek = (image, kind, x, y) => {
  peek.replaceChildren();
  if (thumbs[image] >= 0) {
    const picture = element("img");
    picture.src = thumbnails[thumbs[image]];
    picture.alt = "";
    peek.append(picture);
  }
  const words = element("div");
  if (className(image)) words.append(element("strong", "", className(image)), element("br"));
  words.append(names[image]);
  if (kind && kind !== className(image)) words.append(element("br"), element("span", "muted", kind));
  peek.append(words);
  peek.hidden = false;
  const { width, height } = peek.getBoundingClientRect();
  peek.style.left = `${scrollX + Math.max(12, Math.min(x + 14, innerWidth - width - 12))}px`;
  peek.style.top = `${scrollY + Math.max(12, Math.min(y + 14, innerHeight - height - 12))}px`;
};
const hidePeek = () => { peek.hidden = true; };
const showPoint = (curve, image, x, y) => {
  const traces = figures.map.data;
  showPeek(image, traces.length > 1 ? traces[curve].name : "", x, y);
};
const onPoint = ({ points: [point], event }) =>
  showPoint(point.curveNumber, point.customdata, event.clientX, event.clientY);
map.on("plotly_hover", onPoint);
map.on("plotly_click", onPoint);
map.on("plotly_unhover", hidePeek);
const stops = figures.map.data.flatMap(({ x, y, customdata }, curve) =>
  customdata.map((image, i) => ({ curve, image, x: x[i], y: y[i] }))).sort((a, b) => a.x - b.x);
let stop = -1;
map.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape") hidePeek();
  if (!step) return;
  event.preventDefault();
  stop = (stop + step + stops.length) % stops.length;
  const { curve, image, x, y } = stops[stop];
  const { xaxis, yaxis } = map._fullLayout;
  const box = map.getBoundingClientRect();
  showPoint(curve, image, box.left + xaxis._offset + xaxis.l2p(x), box.top + yaxis._offset + yaxis.l2p(y));
});
map.addEventListener("blur", hidePeek);

const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
(0, eval)(await new Response(unpacked).text()); // defines Plotly

const { plots, steps } = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const hiddenOrders = new Set();
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const visible = (trace) => (trace.meta ? !hiddenOrders.has(trace.meta) : hiddenOrders.size === 0);

function layout(element, figure, data) {
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
  const font = { color: css("--text"), size: 12, family: getComputedStyle(document.body).fontFamily };
  const given = structuredClone(figure.layout); // plotly writes into what it gets
  if (given.xaxis.type === "log") {
    const { margin, ...axis } = logAxis(data);
    Object.assign(given.xaxis, axis, { tickangle: 0 });
    element.margin = margin;
    const line = { width: 1, dash: "dot", color: css("--soft") };
    if (margin) given.shapes = [{ type: "line", x0: margin.at, x1: margin.at, yref: "paper", y0: 0, y1: 1, line }];
  }
  return {
    ...given,
    font,
    width: element.clientWidth,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    margin: { l: 8, r: 12, t: 10, b: 8 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") } },
    xaxis: { ...axis, ...given.xaxis },
    yaxis: { ...axis, ...given.yaxis },
  };
}

/* Limits and ticks as in style.py's log_axis, of what is shown. What costs far more than the rest
   (it has customdata: its cost in words) is drawn at the margin, each cost in a place of its own. */
function logAxis(data) {
  const shown = data.filter((trace) => trace.visible && trace.x.length > 0);
  const near = shown.filter((trace) => !trace.customdata);
  const logs = (near.length ? near : shown).flatMap((trace) => trace.x).map(Math.log10);
  if (logs.length === 0) return {};
  const low = Math.min(...logs), high = Math.max(...logs), pad = Math.max(0.06 * (high - low), 0.02);
  const range = [low - pad, high + pad], { tickvals, ticktext } = logTicks(range);
  const far = near.length ? shown.filter((trace) => trace.customdata) : [];
  const costs = [...new Set(far.map((trace) => trace.customdata[0]))];
  const end = range[1], step = (range[1] - range[0]) / 6;
  const places = costs.map((_, i) => 10 ** (end + (i + 0.6) * step));
  for (const trace of far) trace.x = [places[costs.indexOf(trace.customdata[0])]];
  if (costs.length > 0) range[1] += (costs.length + 0.2) * step;
  const margin = costs.length > 0 ? { at: 10 ** end, last: 10 ** (end - 0.3 * step), places, costs } : null;
  return { range, ...withMargin({ tickvals, ticktext }, margin), margin };
}

/* Ticks up to the margin, then a cost for each place there. */
function withMargin({ tickvals, ticktext }, margin) {
  if (!margin) return { tickvals, ticktext };
  const kept = tickvals.map((_, i) => i).filter((i) => tickvals[i] <= margin.last);
  return {
    tickvals: [...kept.map((i) => tickvals[i]), ...margin.places],
    ticktext: [...kept.map((i) => ticktext[i]), ...margin.costs],
  };
}

function logTicks(range) {
  const tickvals = ticks(...range.map((log) => 10 ** log)).map((tick) => Number(tick.toPrecision(6)));
  return { tickvals, ticktext: tickvals.map(String) };
}

function ticks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const decades = Array.from({ length: last - first }, (_, i) => 10 ** (first + i));
  for (const set of steps) {
    const inside = decades.flatMap((decade) => set.map((step) => step * decade));
    const shown = inside.filter((tick) => low <= tick && tick <= high);
    if (shown.length >= 4) return shown;
  }
  const decade = Math.floor(Math.log10(high - low));
  let multiples = [];
  for (const size of [10 ** decade, 10 ** (decade - 1)])
    for (const step of [5 * size, 2.5 * size, 2 * size, size]) {
      multiples = [];
      for (let i = Math.ceil(low / step); i * step <= high; i++) multiples.push(i * step);
      if (multiples.length >= 3) return multiples;
    }
  return multiples;
}

function retick(element, change) {
  const zoomed = Object.keys(change).some((key) => /^xaxis\.(auto)?range/.test(key));
  const { type, range } = element.layout.xaxis;
  if (!zoomed || type !== "log") return;
  if (change["xaxis.autorange"]) return draw(element);
  const { tickvals, ticktext } = withMargin(logTicks(range), element.margin);
  Plotly.relayout(element, { "xaxis.tickvals": tickvals, "xaxis.ticktext": ticktext });
}

function draw(element) {
  const figure = plots[element.dataset.figure];
  const data = figure.data.map((trace) => ({ ...trace, visible: visible(trace) }));
  const first = !element.classList.contains("js-plotly-plot");
  Plotly.react(element, data, layout(element, figure, data), { displayModeBar: false });
  if (first) element.on("plotly_relayout", (change) => retick(element, change));
}

function drawAll() {
  for (const element of document.querySelectorAll(".plot")) if (element.clientWidth > 0) draw(element);
}

/* A table fades out where it goes on beyond its frame. */
function fade() {
  for (const frame of document.querySelectorAll(".scroll"))
    frame.classList.toggle("more", frame.scrollLeft + frame.clientWidth < frame.scrollWidth - 1);
}

/* Shows what belongs to the chosen case and machine; plots are drawn once they are to be seen. */
function choose() {
  for (const kind of ["case", "setup"]) {
    const select = document.getElementById(kind);
    if (!select) continue;
    for (const element of document.querySelectorAll(`[data-${kind}]`))
      element.hidden = element.dataset[kind] !== select.value;
  }
  const setup = document.getElementById("setup"); // a name as long as a machine's would be cut in it
  if (setup) document.getElementById("machine").textContent = setup.selectedOptions[0].parentElement.label;
  drawAll();
  fade();
}

for (const kind of ["case", "setup"]) document.getElementById(kind)?.addEventListener("change", choose);
for (const chip of document.querySelectorAll("button.chip"))
  chip.addEventListener("click", () => {
    const order = chip.dataset.order;
    if (!hiddenOrders.delete(order)) hiddenOrders.add(order);
    chip.setAttribute("aria-pressed", String(!hiddenOrders.has(order)));
    drawAll();
  });
/* A click on the header of a column sorts by it, another one the other way round. */
const order = new Intl.Collator("en", { numeric: true });
const units = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, s: 1, min: 60, h: 3600, k: 1e3, M: 1e6, G: 1e9 };
function key(cell) {
  const text = cell.innerText.replace("−", "-").replace(/(\d),(?=\d{3})/g, "$1");
  const [, less, number, unit] = text.match(/^(< )?([-+]?[\d.]+)[^\s\w]*\s?(\w*)/) ?? [];
  return number === undefined ? null : Number(number) * (units[unit] ?? 1) - (less ? 1e-9 : 0);
}
function compare(a, b) {
  const [x, y] = [key(a), key(b)];
  if (x !== null && y !== null) return x - y;
  return (x === null) - (y === null) || order.compare(a.innerText, b.innerText);
}
function sort(header, body) {
  const place = header.getBoundingClientRect().left; // headers may stand in two rows
  const at = [...body.rows[0].cells].findIndex((cell) => Math.abs(cell.getBoundingClientRect().left - place) < 1);
  const way = header.ariaSort === "ascending" ? -1 : 1;
  for (const other of header.closest("thead").querySelectorAll("th")) other.ariaSort = null;
  header.ariaSort = way < 0 ? "descending" : "ascending";
  body.append(...[...body.rows].sort((a, b) => way * compare(a.cells[at], b.cells[at])));
}
for (const body of document.querySelectorAll("tbody"))
  for (const header of body.parentElement.querySelectorAll("th"))
    if (header.colSpan === 1 && body.rows.length > 1) {
      header.classList.add("sorts");
      header.addEventListener("click", () => sort(header, body));
    }
let timer = 0, width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return; // a phone's address bar came or went
  width = innerWidth;
  clearTimeout(timer);
  timer = setTimeout(() => { drawAll(); fade(); }, 100);
});
dark.addEventListener("change", drawAll);
for (const frame of document.querySelectorAll(".scroll")) frame.addEventListener("scroll", fade);
for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", fade);
choose();

// The report's picture grid: filter, search, sort, kept in the address; entries become elements only when they are
// scrolled to.
"use strict";
const CHUNK = 24;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function choice(label, names) {
  const holder = make("label", "", label + " "), select = make("select");
  names.forEach((name, i) => { select.append(new Option(name, i)); });
  holder.append(select);
  return [holder, select];
}

// Scores are numbers, null (undefined) or "inf".
const number = (score) => score === "inf" ? Infinity : score === "-inf" ? -Infinity : score;
const text = (score) => score === null ? "undefined" : typeof score === "number" ? score.toFixed(2) : score;

function frame(uri, outline) {
  const holder = make("div", "frame", uri ? "" : "no picture");
  if (uri) {
    const image = make("img");
    image.onload = () => { if (image.naturalWidth < 128) image.className = "small"; };
    image.src = uri;
    holder.append(image);
  }
  if (uri && outline) {
    const border = make("img", "outline");
    border.src = outline;
    holder.append(border);
  }
  return holder;
}

// The best of several methods' scores; NaN, which equals nothing, where they do not differ.
function best(data, entry, column) {
  const known = entry.scores.map((scores) => number(scores[column])).filter((score) => score !== null);
  if (new Set(known).size < 2) return NaN;
  return data.columns[column].higher ? Math.max(...known) : Math.min(...known);
}

function figure(title, uri, outline) {
  const holder = make("figure"), caption = make("figcaption");
  caption.append(make("b", "", title));
  holder.append(frame(uri, outline), caption);
  return holder;
}

function result(data, entry, method) {
  const pictures = entry.pictures || { results: [] };
  const holder = figure(data.methods[method], pictures.results[method], pictures.outline);
  data.columns.forEach((column, i) => {
    const score = entry.scores[method][i], line = make("div");
    if (number(score) === best(data, entry, i)) line.className = "best";
    line.append(make("span", "", column.title), make("span", "", text(score)));
    holder.lastChild.append(line);
  });
  return holder;
}

function article(data, entry) {
  const holder = make("article", "entry"), title = make("p", "", entry.text + " "), pictures = make("div", "pictures");
  const groups = data.groups.map((group, i) => group.names[entry.groups[i]]);
  title.append(make("small", "", [entry.id, ...groups].join(" · ")));
  for (const name of ["source", "target"]) {
    const uri = entry.pictures && entry.pictures[name];
    if (uri || name === "source") pictures.append(figure(name, uri, entry.pictures && entry.pictures.outline));
  }
  pictures.append(...data.methods.map((_, method) => result(data, entry, method)));
  holder.append(title, pictures);
  return holder;
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);  // undefined ones last, whatever the order
  return a === b ? 0 : sign * (a < b ? -1 : 1);
}

function browse(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const controls = make("div", "controls"), list = make("div", "list"), more = make("button", "more", "show more");
  const search = make("input", "search");
  search.type = "search";
  search.placeholder = "search instructions and ids";
  const groups = data.groups.map((group) => choice(group.title, ["all", ...group.names]));
  const keys = data.columns.flatMap((column, c) => data.methods.map((method, m) => ({ column, c, m, method })));
  const names = keys.map((key) => `${key.column.title}, ${key.method}`);
  const [sortLabel, sort] = choice("sort by", ["benchmark order", ...names]);
  const [orderLabel, order] = choice("", ["best first", "worst first"]);
  const outlineLabel = make("label", "", "mask outline "), outline = make("input");
  outline.type = "checkbox";
  const withLabel = make("label", "", "only with pictures "), withPictures = make("input");
  withPictures.type = "checkbox";
  const count = make("span", "count");
  controls.append(search, ...groups.map((group) => group[0]), sortLabel, orderLabel);
  if (data.entries.some((entry) => entry.pictures && entry.pictures.outline)) {
    outline.checked = true;
    outlineLabel.append(outline);
    controls.append(outlineLabel);
  }
  if (data.entries.some((entry) => !entry.pictures)) {
    withPictures.checked = data.entries.some((entry) => entry.pictures);
    withLabel.append(withPictures);
    controls.append(withLabel);
  }
  controls.append(count);
  let found = [];

  // Name in the address -> control; a value is the chosen option's text, so that it survives other options before it.
  const section = root.closest("section").id;
  const kept = new Map([["search", search], ["sort", sort], ["order", order], ["outline", outline],
    ["with pictures", withPictures], ...groups.map(([, select], i) => [data.groups[i].title, select])]);
  const value = (control) => control.type === "checkbox" ? String(control.checked)
    : control.options ? control.selectedOptions[0].text : control.value;
  const defaults = new Map([...kept].map(([name, control]) => [name, value(control)]));

  function remember() {
    const address = new URLSearchParams(location.hash.slice(1));
    kept.forEach((control, name) => {
      const key = `${section}.${name}`;
      if (value(control) === defaults.get(name)) address.delete(key);
      else address.set(key, value(control));
    });
    history.replaceState(null, "", `#${address}`);
  }

  function recall() {
    const address = new URLSearchParams(location.hash.slice(1));
    kept.forEach((control, name) => {
      const wanted = address.get(`${section}.${name}`) ?? defaults.get(name);
      if (control.type === "checkbox") control.checked = wanted === "true";
      else if (!control.options) control.value = wanted;
      else control.selectedIndex = Math.max(0, [...control.options].findIndex((option) => option.text === wanted));
    });
    list.classList.toggle("no-outline", !outline.checked);
    update();
  }

  function extend() {
    const start = list.childElementCount;
    list.append(...found.slice(start, start + CHUNK).map((entry) => article(data, entry)));
    more.hidden = list.childElementCount >= found.length;
  }

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = data.entries.filter((entry) => {
      const haystack = `${entry.text} ${entry.id}`.toLowerCase();
      return words.every((word) => haystack.includes(word))
        && groups.every(([, select], i) => select.value === "0" || entry.groups[i] === Number(select.value) - 1)
        && (entry.pictures || !withPictures.checked);
    });
    if (sort.value !== "0") {
      const key = keys[sort.value - 1], sign = (key.column.higher ? -1 : 1) * (order.value === "0" ? 1 : -1);
      const score = (entry) => number(entry.scores[key.m][key.c]);
      found.sort((a, b) => compare(score(a), score(b), sign));
    }
    order.disabled = sort.value === "0";
    count.textContent = `${found.length} of ${data.entries.length}`;
    list.replaceChildren();
    extend();
  }

  controls.addEventListener("input", (event) => {
    if (event.target === outline) list.classList.toggle("no-outline", !outline.checked);
    else update();
    remember();
  });
  window.addEventListener("hashchange", recall);
  more.addEventListener("click", extend);
  new IntersectionObserver((seen) => { if (seen[0].isIntersecting && !more.hidden) extend(); }, { rootMargin: "800px" })
    .observe(more);
  root.append(controls, list, more);
  recall();
}

document.querySelectorAll(".browse").forEach(browse);

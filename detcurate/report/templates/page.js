"use strict";
// All texts from the data are set as text, never as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const LAYERS = ["truth", "consensus", "votes"];
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const byId = (id) => document.getElementById(id);
  const viewer = byId("viewer");
  const body = document.body;
  let shown = null; // the button whose picture is in the viewer
  let isZoomed = false;

  const element = (name, attributes = {}, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const numbers = (text) => (text ? text.split(" ").map(Number) : null);
  const view = ([x1, y1, x2, y2]) => `${x1} ${y1} ${x2 - x1} ${y2 - y1}`;
  const sides = ([x1, y1, x2, y2]) => ({ x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) });
  const className = (index) => payload.classes[index] ?? "";

  function drawBoxes(svg, picture, focus, withNames) {
    for (const layer of [...LAYERS].reverse()) {
      const group = element("g", { class: `drawn layer-${layer}` });
      for (const box of picture[layer]) {
        if (layer !== "votes") group.append(element("rect", { ...sides(box), class: "halo" }));
        group.append(element("rect", { ...sides(box), class: layer }));
      }
      svg.append(group);
    }
    if (focus) {
      const pad = Math.max(2, 0.04 * Math.max(focus[2] - focus[0], focus[3] - focus[1]));
      const wide = [focus[0] - pad, focus[1] - pad, focus[2] + pad, focus[3] + pad];
      svg.append(element("rect", { ...sides(wide), class: "focus outer" }), element("rect", { ...sides(wide), class: "focus" }));
    }
    if (withNames) nameBoxes(svg, picture);
  }

  // The names keep their size on the screen, whatever the part of the image that is shown.
  function nameBoxes(svg, picture) {
    const box = svg.viewBox.baseVal;
    const rect = svg.getBoundingClientRect();
    const scale = Math.max(box.width / Math.max(rect.width, 1), box.height / Math.max(rect.height, 1));
    const placed = [];
    const overlaps = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    for (const [layer, offset] of [["truth", -4], ["consensus", 13]]) {
      const group = element("g", { class: `names layer-${layer}` });
      svg.append(group); // after all boxes, so that no line crosses a name
      for (const [x1, y1, , y2, index, confidence] of picture[layer]) {
        const text = confidence === null ? className(index) : `${className(index)} ${confidence.toFixed(2)}`;
        const y = layer === "truth" ? y1 + offset * scale : y2 + offset * scale;
        const wide = (text.length * 7.2 + 4) * scale;
        const area = [x1, y - 12 * scale, x1 + wide, y];
        if (placed.some((other) => overlaps(area, other))) continue; // the table beside names all of them
        placed.push(area);
        group.append(element("text", { x: x1, y, class: layer, style: `font-size: ${12 * scale}px; stroke-width: ${3 * scale}px` }, text));
      }
    }
  }

  function setLayer(layer, isOn) {
    body.classList.toggle(`show-${layer}`, isOn);
    document.querySelectorAll(`button.layer[data-layer="${layer}"]`).forEach((button) => button.setAttribute("aria-pressed", String(isOn)));
  }
  const toggleLayer = (layer) => setLayer(layer, !body.classList.contains(`show-${layer}`));

  function applyFilters() {
    const classIndex = byId("filter-class").value;
    const kept = byId("filter-kept").value;
    const text = byId("filter-text").value.trim().toLowerCase();
    const tiles = [...document.querySelectorAll(".tile")];
    let count = 0;
    for (const tile of tiles) {
      const fits =
        (!classIndex || tile.dataset.classes.split(" ").includes(classIndex)) &&
        (!kept || tile.dataset.kept === kept) &&
        (!text || tile.dataset.file.toLowerCase().includes(text));
      tile.hidden = !fits;
      count += fits;
    }
    byId("filter-count").textContent = `${count} of ${tiles.length} pictures`;
  }

  const neighbours = () => [...shown.closest(".gallery").querySelectorAll(".tile:not([hidden]) .shot")];

  function step(by) {
    const all = neighbours();
    const next = all[all.indexOf(shown) + by];
    if (next) show(next);
  }

  function fillObjects(picture, focus) {
    const rows = [];
    const same = (box) => focus && box.slice(0, 4).every((side, at) => Math.abs(side - focus[at]) < 0.2);
    for (const box of picture.truth) rows.push(["label", box]);
    for (const box of [...picture.consensus].sort((a, b) => b[5] - a[5]).slice(0, 25)) rows.push(["consensus", box]);
    const filled = rows.map(([kind, box]) => {
      const row = document.createElement("tr");
      if (same(box)) row.className = "focus";
      const cells = [kind, className(box[4]), box[5] === null ? "" : box[5].toFixed(2), box[6]];
      cells.forEach((value, at) => {
        const cell = document.createElement(at ? "td" : "th");
        if (!at) cell.scope = "row";
        if (at === 2) cell.className = "n";
        const isolated = document.createElement("bdi");
        isolated.textContent = value;
        cell.append(isolated);
        row.append(cell);
      });
      return row;
    });
    byId("viewer-objects").tBodies[0].replaceChildren(...filled);
    byId("viewer-objects").caption.textContent = payload.members ? `Objects; ${payload.members} members vote` : "Objects";
  }

  function show(button) {
    shown = button;
    const picture = payload.pictures[button.dataset.picture];
    const focus = numbers(button.dataset.focus);
    const svg = byId("viewer-image");
    const whole = [0, 0, ...picture.size];
    svg.replaceChildren();
    svg.setAttribute("viewBox", view(isZoomed && focus ? numbers(button.dataset.part) : whole));
    svg.setAttribute("aria-label", button.querySelector("img")?.alt ?? button.dataset.caption);
    if (picture.src) svg.append(element("image", { href: picture.src, ...sides(whole), preserveAspectRatio: "none" }));
    byId("viewer-problem").hidden = Boolean(picture.src);
    byId("viewer-problem").textContent = picture.problem;
    byId("viewer-title").textContent = picture.file;
    byId("viewer-caption").textContent = button.dataset.caption;
    byId("viewer-lines").replaceChildren(
      ...[`image_id ${picture.id}`, ...picture.lines].map((line) => {
        const item = document.createElement("li");
        item.textContent = line;
        return item;
      })
    );
    fillObjects(picture, focus);
    const all = neighbours();
    const place = all.indexOf(button);
    byId("viewer-place").textContent = `${place + 1} of ${all.length}`;
    byId("viewer-previous").disabled = place === 0;
    byId("viewer-next").disabled = place === all.length - 1;
    byId("viewer-zoom").disabled = !focus;
    byId("viewer-zoom").setAttribute("aria-pressed", String(isZoomed));
    if (!viewer.open) viewer.showModal();
    drawBoxes(svg, picture, focus, true);
  }

  function toggleZoom() {
    if (byId("viewer-zoom").disabled) return;
    isZoomed = !isZoomed;
    show(shown);
  }

  function onKey(event) {
    if (!viewer.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = {
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      1: () => toggleLayer("truth"),
      2: () => toggleLayer("consensus"),
      3: () => toggleLayer("votes"),
      z: toggleZoom,
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  for (const button of document.querySelectorAll(".shot")) {
    const picture = payload.pictures[button.dataset.picture];
    const svg = button.querySelector("svg.boxes");
    svg.setAttribute("viewBox", view(numbers(button.dataset.part)));
    drawBoxes(svg, picture, numbers(button.dataset.focus), false);
    button.addEventListener("click", () => show(button));
  }
  for (const button of document.querySelectorAll("button.layer")) {
    button.addEventListener("click", () => toggleLayer(button.dataset.layer));
  }
  setLayer("truth", true);
  setLayer("consensus", true);
  setLayer("votes", false);
  if (byId("filter-class")) {
    for (const id of ["filter-class", "filter-kept", "filter-text"]) byId(id).addEventListener("input", applyFilters);
    applyFilters();
  }
  byId("viewer-previous").addEventListener("click", () => step(-1));
  byId("viewer-next").addEventListener("click", () => step(1));
  byId("viewer-zoom").addEventListener("click", toggleZoom);
  byId("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("close", () => shown?.focus());
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  document.addEventListener("keydown", onKey);
})();

/* Returns what is wrong with the page, a line each. Tables may scroll sideways in their frame. */
(() => {
  const found = [];
  const shown = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true });

  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, select") || !shown(element)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const drawn = element.closest("svg");
    const boxes = drawn ? [element.getBoundingClientRect()] : range.getClientRects();
    for (const { left, right, top, bottom } of boxes)
      if (right - left > 0.5) texts.push({ node, element, left, right, top, bottom });
  }

  for (const text of texts) {
    const what = text.node.data.trim().slice(0, 50);
    const frame = text.element.closest(".scroll");
    if (!frame && (text.left < -0.5 || text.right > innerWidth + 0.5))
      found.push(`off the page: ${what}`);
    for (let e = text.element; e !== document.body; e = e.parentElement) {
      const { overflowX, overflowY } = getComputedStyle(e);
      if (overflowX === "visible" && overflowY === "visible") continue;
      const box = e.getBoundingClientRect();
      const high = text.top < box.top - 1 || text.bottom > box.bottom + 1;
      const wide = text.left < box.left - 1 || text.right > box.right + 1;
      if (high || (wide && e !== frame)) found.push(`cut: ${what}`);
      if (e === frame) {
        text.left = Math.max(text.left, box.left);
        text.right = Math.min(text.right, box.right);
      }
    }
  }

  texts.sort((a, b) => a.top - b.top);
  for (const [i, a] of texts.entries())
    for (let j = i + 1; j < texts.length && texts[j].top < a.bottom - 3; j++) {
      const b = texts[j];
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      if (across > 2 && a.node !== b.node)
        found.push(`overlap: ${a.node.data.trim()} and ${b.node.data.trim()}`);
    }

  for (const select of document.querySelectorAll("select")) {
    const style = getComputedStyle(select), text = select.selectedOptions[0].text;
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = style.font;
    const padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
    if (pen.measureText(text).width > select.clientWidth - padding) found.push(`cut: ${text}`);
  }

  for (const plot of document.querySelectorAll(".plot")) {
    if (!shown(plot)) continue;
    const box = plot.getBoundingClientRect();
    const inside = [...plot.querySelectorAll(".scatterlayer .point")].filter((point) => {
      const { left, right, top, bottom } = point.getBoundingClientRect();
      return left >= box.left && right <= box.right && top >= box.top && bottom <= box.bottom;
    });
    if (box.height < 100 || inside.length === 0) found.push(`empty plot: ${plot.dataset.figure}`);
  }

  for (const card of document.querySelectorAll(".card, .tile"))
    if (shown(card) && !card.innerText.trim()) found.push("empty card");
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways");
  return found;
})()

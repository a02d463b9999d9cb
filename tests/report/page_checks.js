// What a browser makes of a page: one list of complaints.
(() => {
  const complaints = [];
  const shown = element => element.checkVisibility({ visibilityProperty: true });
  document.querySelectorAll('details').forEach(part => { part.open = true; });

  const channels = colour => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const luminance = ({ r, g, b }) => [r, g, b]
    .map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = element => {
    for (let place = element; place; place = place.parentElement) {
      const colour = channels(getComputedStyle(place).backgroundColor);
      if (colour.a > 0) return colour;
    }
    return { r: 255, g: 255, b: 255, a: 1 };
  };
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());

  for (const element of document.body.querySelectorAll('*')) {
    if (!own(element) || ['TITLE', 'title', 'STYLE'].includes(element.tagName) || !shown(element)) continue;
    const style = getComputedStyle(element);
    const colour = channels(element instanceof SVGElement ? style.fill : style.color);
    const [dark, light] = [luminance(colour), luminance(ground(element))].sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    const words = element.textContent.trim().slice(0, 40);
    if (ratio < 4.5) complaints.push(`contrast ${ratio.toFixed(2)}: ${words}`);
    if (parseFloat(style.fontSize) < 12) complaints.push(`text of ${style.fontSize}: ${words}`);
  }

  for (const drawing of document.querySelectorAll('svg[role=img]')) {
    const frame = drawing.closest('.panel, .scroll');
    const texts = [...drawing.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([words, box], index) => {
      if (!frame && (box.left < -1 || box.right > innerWidth + 1)) complaints.push(`beyond the page: ${words}`);
      for (const [others, other] of texts.slice(index + 1)) {
        const across = Math.min(box.right, other.right) - Math.max(box.left, other.left);
        const down = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
        if (across > 2 && down > 4) complaints.push(`${words} covers ${others}`);
      }
    });
  }

  for (const picture of document.images) if (!picture.naturalWidth) complaints.push(`broken picture: ${picture.alt}`);
  if (document.documentElement.scrollWidth > innerWidth) {
    complaints.push(`${document.documentElement.scrollWidth} pixels wide in a window of ${innerWidth}`);
  }
  return complaints;
})()

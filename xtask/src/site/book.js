"use strict";
// Pages in frames look at this to follow a notebook's theme; here they follow the book's.
const page = document.documentElement;
function tellTheme() {
  const isLight = page.classList.contains("light") || page.classList.contains("rust");
  document.body.dataset.jpThemeLight = isLight;
}
new MutationObserver(tellTheme).observe(page, { attributeFilter: ["class"] });
tellTheme();

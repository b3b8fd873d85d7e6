"use strict";
// Pages in frames look at this to follow a notebook's theme; here they follow the book's.
const page = document.documentElement;
function tellTheme() {
  const isLight = page.classList.contains("light") || page.classList.contains("rust");
  document.body.dataset.jpThemeLight = isLight;
}
new MutationObserver(tellTheme).observe(page, { attributeFilter: ["class"] });
tellTheme();

// The way back to the first page of the site.
const train = document.createElement("a");
train.href = `${path_to_root}../index.html`;
train.textContent = "Train it here";
document.querySelector(".right-buttons").append(train);

// For readers without a mouse: what scrolls sideways can be reached with the keyboard, and mdBook's
// button for the list of chapters is one.
for (const wide of document.querySelectorAll("pre > code, .table-wrapper, .output")) {
  wide.tabIndex = 0;
}
document.getElementById("mdbook-sidebar-toggle").setAttribute("role", "button");

// The search of the site: every word must occur, and what is called so stands before what mentions it.
// Takes the place of the fuzzy search of smalldocs, which stays for words that occur nowhere.
(() => {
  if (!document.querySelector(".smalldocs-search") || !window.Fuse) return;
  const Fuzzy = window.Fuse;
  const weight = (href) =>
    /^(\.\/)?(index|tour|how_to_|troubleshooting|glossary)/.test(href) ? 3
    : /^(\.\/)?(api_|names|settings|commands)/.test(href) ? 1 : 2;
  const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const points = (field, word, begins, exact) =>
    new RegExp(`(^|[^a-z0-9])${escaped(word)}($|[^a-z0-9])`).test(field) ? exact
    : new RegExp(`(^|[^a-z0-9])${escaped(word)}`).test(field) ? begins : 0;

  class Ranked {
    constructor(index, options) {
      this.fuzzy = new Fuzzy(index, options);
      this.entries = index.map((item) => ({
        item, weight: weight(item.href), title: item.title.toLowerCase(),
        section: item.section.toLowerCase(), text: item.text.toLowerCase(),
      }));
    }
    score(entry, query, words) {
      let sum = entry.section === query || entry.title === query ? 60 : 0;
      for (const word of words) {
        const found = points(entry.title, word, 6, 8) + points(entry.section, word, 8, 10)
          + points(entry.text, word, 1, 2);
        if (!found) return 0;
        sum += found;
      }
      if (words.length > 1 && `${entry.title} ${entry.section}`.includes(query)) sum += 20;
      if (words.length > 1 && entry.text.includes(query)) sum += 4;
      if (!entry.section) sum += 4;  // the page itself before its parts
      return sum * entry.weight;
    }
    search(text, options) {
      const query = text.toLowerCase().trim(), words = query.split(/\s+/);
      const found = this.entries.map((entry) => ({ item: entry.item, score: this.score(entry, query, words) }))
        .filter((hit) => hit.score > 0).sort((a, b) => b.score - a.score);
      return found.length ? found.slice(0, options.limit) : this.fuzzy.search(text, options);
    }
  }
  window.Fuse = Ranked;
})();

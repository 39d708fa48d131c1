export function count(text) {
    const words = text.match(/\p{L}+/gu) ?? [];
    return {
        lines: text.split("\n").length - 1,
        words: words.length,
        longest: words.reduce((longest, word) => (word.length > longest.length ? word : longest), ""),
    };
}

"""Scripts that put no spaces between words, which tokenizers, templates and whole-word searches must treat apart."""

# For a regular expression's brackets: Chinese characters with their punctuation and full-width forms, and Japanese
# syllables.
CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"

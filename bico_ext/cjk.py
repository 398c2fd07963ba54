"""The characters of scripts that put no spaces between words: Chinese and Japanese.

Tokenizers, templates and whole-word searches must treat them differently from other scripts.
"""

# The inside of a regular expression's brackets: Chinese characters with their punctuation and full-width forms, and
# Japanese syllables.
CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"

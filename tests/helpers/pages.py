"""A report page as a test reads it."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    "What a page loads, and its text."

    def __init__(self, text):
        super().__init__()
        self.loaded, self.tags, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)
        self.loaded += [
            value
            for name, value in attributes.items()
            if name in ("src", "srcset", "data") or (name == "href" and tag == "link")
        ]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"<{tag}> is closed out of turn"

    def handle_data(self, data):
        self.words.append(data)

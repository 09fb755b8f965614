"""Reads a page of the report."""

from html.parser import HTMLParser


class Links(HTMLParser):
    """Collects what a page loads, and the text of its scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []  # followed by a click alone
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        found = [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        (self.linked if tag == "a" else self.loaded).extend(found)
        self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside == "style":
            self.styles.append(data)

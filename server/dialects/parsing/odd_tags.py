"""Spellings of `<tool_call>` that models write instead of it: another case, brackets, blanks inside, a plural, escapes.

They are markup only where a whole call of a declared tool follows; elsewhere they are text, as the tag may be what
the text is about. The escaped ones (`&lt;tool_call&gt;`, `\\<tool_call\\>`) are how HTML and Markdown write the tag as
text: they count only where tags of the call behind them are not escaped.
"""

NAMES = ("tool_call", "tool_calls", "toolcall", "tool-call")
PLAIN_FORMS = ("<{}>", "< {}>", "<{} >", "[{}]")
PLAIN_CLOSE_FORMS = ("</{}>", "</ {}>", "< /{}>", "</{} >", "[/{}]")
ESCAPED_FORMS = ("&lt;{}&gt;", "\\<{}\\>")
ESCAPED_CLOSE_FORMS = ("&lt;/{}&gt;", "\\</{}\\>")

PLAIN_OPEN = tuple(form.format(name) for form in PLAIN_FORMS for name in NAMES)
PLAIN_CLOSE = tuple(form.format(name) for form in PLAIN_CLOSE_FORMS for name in NAMES)
ODD_OPEN = (*PLAIN_OPEN, *(form.format(name) for form in ESCAPED_FORMS for name in NAMES))
ODD_CLOSE = (*PLAIN_CLOSE, *(form.format(name) for form in ESCAPED_CLOSE_FORMS for name in NAMES))

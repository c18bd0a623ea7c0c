"""Streamed tool loop: calls are run until the model answers with text."""

from clients.connect import options, server_of
from clients.example_tools import add, get_time, get_weather
from clients.functions import Toolbox
from clients.loop import Conversation, LoopObserver


def main() -> None:
    """python -m clients.tool_loop --ask 'What time is it in Rome?'"""
    parser = options(__doc__ or "")
    parser.add_argument("--ask", default="What is the weather in Paris?", help="the question (default: %(default)s)")
    chosen = parser.parse_args()
    server = server_of(chosen)
    observer = LoopObserver(
        on_text=lambda text: print(text, end="", flush=True),
        on_call=lambda call, result: print(f"{call.name}({call.arguments}) -> {result}"),
    )
    Conversation(server.client(), server.model, Toolbox.of([get_weather, get_time, add])).send(chosen.ask, observer)
    print()


if __name__ == "__main__":
    main()

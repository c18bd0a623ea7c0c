/** The three forms in which a conversation goes to the server, and its replies come back. */

import * as chat from "./surface_chat.js";
import * as messages from "./surface_messages.js";
import * as responses from "./surface_responses.js";

/** Each has `name`, `path`, `build(conversation, model)`, `read(frame, reply)`, and may have `leftOut(conversation)`. */
export const SURFACES = { chat, responses, messages };

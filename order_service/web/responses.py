"""The answers as models, for the OpenAPI document. They have exactly these members: the client's documents fix that."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from order_service.contract.events import Amount, Id, Price
from order_service.domain.order import State
from order_service.web.problems import KINDS


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(Answer):
    """One requested dish; name, price and stock are null until the menu has answered."""

    id: Id
    name: str | None
    price: Price | None
    stock: Annotated[int | None, Field(ge=0, description="What is left after this order.")]


class Order(Answer):
    """One item per requested menu id, in order, repeats included."""

    id: Id
    user_id: Id
    items: Annotated[list[Item], Field(min_length=1, max_length=100)]
    total_price: Annotated[Amount | None, Field(description="Null until the menu has answered.")]
    status: Literal["pending", "paid", "failed", "cancelled"]
    created_at: AwareDatetime


class OrderPage(Answer):
    """Newest first."""

    orders: Annotated[list[Order], Field(max_length=100)]
    next_cursor: Annotated[str | None, Field(description="Send it as `cursor` for the next page; null on the last.")]


class Happening(Answer):
    """A message, a request or a deadline, and what it made of the order: states are finer than the status."""

    at: AwareDatetime
    type: str
    from_: Annotated[State | None, Field(alias="from")]
    to: State
    message_id: str | None


class History(Answer):
    """Oldest first."""

    events: list[Happening]


class Health(Answer):
    status: Literal["ok", "ready"]


class FieldProblem(Answer):
    field: str
    message: str


class Problem(Answer):
    """RFC 9457; `code` is for programs, `message` for people."""

    type: Annotated[str, Field(pattern="^urn:restaurant:problem:[a-z_]+$")]
    title: str
    status: int
    code: Annotated[str, Field(json_schema_extra={"enum": sorted(KINDS)})]
    message: str
    order_id: Annotated[Id | SkipJsonSchema[None], Field(description="The order this is about, if there is one.")] = (
        None
    )
    errors: Annotated[
        list[FieldProblem] | SkipJsonSchema[None], Field(description="Each field that is wrong, with its remedy.")
    ] = None

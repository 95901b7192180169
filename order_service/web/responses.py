"""The response bodies, whose models also document them. The original API specification fixes their members."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from flask import Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.json_schema import SkipJsonSchema

from order_service.contract.envelope import utc_text
from order_service.contract.events import Amount, Id, Price
from order_service.domain import explanation
from order_service.domain import order as domain
from order_service.domain.explanation import Cause, Facts
from order_service.storage import history
from order_service.web import failures

Time = Annotated[AwareDatetime, PlainSerializer(utc_text)]
Status = Literal["pending", "paid", "failed", "cancelled"]
#: Not an enumeration, whose clients would refuse an order with a reason that a later version adds.
Reason = Annotated[
    str | SkipJsonSchema[None],
    Field(description=f"Why the order failed: {', '.join(failures.MESSAGES)}. Absent unless it failed."),
]
#: Not an enum: a generated client must be able to read a state that is newer than itself.
State = Annotated[str, Field(description=f"Known values: {', '.join(domain.State)}. Others may be added.")]
NextCursor = Annotated[str | None, Field(description="The `cursor` of the next page; null on the last page.")]


class Body(BaseModel):
    """A response body, without the members that are not set; its values come from the database and are valid.

    Clients must accept members that a later version adds, so no response schema forbids others.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True)


class Item(Body):
    """One requested dish; name, price and stock are null until the menu has answered."""

    id: Id
    name: str | None
    price: Price | None
    stock: Annotated[int | None, Field(ge=0, description="What remains after this order; null if it is not counted.")]


class Order(Body):
    """One item per requested menu id, in order, repeats included."""

    id: Id
    user_id: Id
    items: Annotated[list[Item], Field(min_length=1, max_length=100)]
    total_price: Annotated[Amount | None, Field(description="Null until the menu has answered.")]
    status: Status
    created_at: Time
    reason: Reason = None
    message: Annotated[
        str | SkipJsonSchema[None],
        Field(description="The reason for people, in the language of Accept-Language. Absent unless the order failed."),
    ] = None

    @classmethod
    def of(cls, order: domain.Order, *, english: bool) -> "Order":
        priced = {item.id: item for item in order.items}
        items = [
            Item.model_construct(id=id, name=item.name, price=item.price, stock=item.stock)
            if (item := priced.get(id))
            else Item.model_construct(id=id, name=None, price=None, stock=None)
            for id in order.menu_ids
        ]
        failure: dict[str, Any] = {}
        if order.state is domain.State.FAILED:
            failure = {"reason": order.reason, "message": failures.message(order, english=english)}
        return cls.model_construct(
            id=order.id,
            user_id=order.user_id,
            items=items,
            total_price=order.total_price,
            status=cast(Status, order.state.status),
            created_at=order.created_at,
            **failure,
        )


class OrderPage(Body):
    """A page of orders, newest first."""

    orders: Annotated[list[Order], Field(max_length=100)]
    next_cursor: NextCursor


class HistoryEntry(Body):
    """A message, a request or a deadline, and the transition it caused; states are more detailed than the status."""

    at: Time
    type: str
    from_: Annotated[State | None, Field(alias="from")]
    to: State
    message_id: str | None
    reason: Reason = None


class History(Body):
    """A page of the history of an order, oldest entry first."""

    events: Annotated[list[HistoryEntry], Field(max_length=100)]
    next_cursor: NextCursor

    @classmethod
    def of(cls, order: domain.Order, entries: Sequence[history.Entry], next_cursor: str | None) -> "History":
        return cls(
            events=[
                HistoryEntry(
                    at=e.at, type=e.type, from_=e.from_state, to=e.to_state, message_id=e.message_id,
                    **({"reason": order.reason} if e.to_state == domain.State.FAILED != e.from_state else {}),
                )
                for e in entries
            ],
            next_cursor=next_cursor,
        )  # fmt: skip


class Explanation(Body):
    """What an order waits for: a paragraph for people, and the facts for programs."""

    order_id: Id
    status: Annotated[str, Field(description="That of the order: pending, paid, failed or cancelled.")]
    state: State
    explanation: Annotated[str, Field(description="A paragraph in the language of Accept-Language.")]
    cause: Annotated[str, Field(description=f"Known values: {', '.join(Cause)}. Others may be added.")]
    waits_for: Annotated[str | None, Field(description="The service: menu or payment; null if the order has ended.")]
    since: Annotated[Time, Field(description="When the order entered its state.")]
    next_reminder_at: Annotated[Time | None, Field(description="When the service is asked again.")]
    expires_at: Annotated[Time | None, Field(description="When the order expires without an answer.")]
    last_answer_at: Annotated[Time | None, Field(description="When the service last answered any order, if recently.")]
    unconfirmed_compensations: Annotated[int, Field(ge=0, description="Releases and refunds without a confirmation.")]

    @classmethod
    def of(cls, facts: Facts, *, english: bool) -> "Explanation":
        return cls.model_construct(**facts.fields, explanation=explanation.explain(facts, english=english))


class Health(Body):
    """The state of the process."""

    status: str


def json_response(body: Body, status: int = 200) -> Response:
    return Response(body.model_dump_json(by_alias=True, exclude_unset=True) + "\n", status, mimetype="application/json")

//! One operation of the API: method, path, who may call it, what goes in and out, and the function that
//! does it. The router and the OpenAPI document are both made from these, so that they cannot differ.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    http::{Method, StatusCode},
    response::Response,
};
use futures_util::future::BoxFuture;
use schemars::{JsonSchema, SchemaGenerator};

use super::{
    call::Call,
    error::ApiError,
    input::{Argument, Body, Input, Precondition, SchemaOf},
    types::{Resource, Scope},
};
use crate::spec::MAX_SPEC_BYTES;

/// How long most operations may take; what they wait for is the store.
const PATIENCE: Duration = Duration::from_secs(40);

type Handler = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Response, ApiError>> + Send + Sync>;

/// One operation.
#[derive(Clone)]
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// Its name for clients made from the document.
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    /// What a token must allow; `None` is for everybody.
    pub(super) needs: Option<Scope>,
    pub(super) input: Input,
    pub(super) answer: Answer,
    pub(super) patience: Duration,
    pub(super) handler: Handler,
}

/// What a success carries.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    /// Of the whole, or of each line or event of a stream.
    pub(super) schema: Option<SchemaOf>,
    /// Whether the `ETag` header names the revision.
    pub(super) tagged: bool,
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.method, self.path)
    }
}

impl Operation {
    pub(super) fn new<F, A>(
        method: Method,
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        handler: F,
    ) -> Self
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        Self {
            method,
            path,
            id,
            summary,
            needs: Some(Scope::All),
            input: Input {
                arguments: &[],
                precondition: Precondition::None,
                body: Body::None,
            },
            answer: Answer {
                status: StatusCode::NO_CONTENT,
                content_type: "application/json",
                schema: None,
                tagged: false,
            },
            patience: PATIENCE,
            handler: Arc::new(move |call| Box::pin(handler(call))),
        }
    }

    /// For whoever may read these.
    pub(super) fn reads(mut self, resource: Resource) -> Self {
        self.needs = Some(Scope::Read(resource));
        self
    }

    /// For whoever may change these.
    pub(super) fn writes(mut self, resource: Resource) -> Self {
        self.needs = Some(Scope::Write(resource));
        self
    }

    /// For everybody.
    pub(super) fn open(mut self) -> Self {
        self.needs = None;
        self
    }

    pub(super) fn arguments(mut self, arguments: &'static [Argument]) -> Self {
        self.input.arguments = arguments;
        self
    }

    pub(super) fn precondition(mut self, precondition: Precondition) -> Self {
        self.input.precondition = precondition;
        self
    }

    /// Takes JSON.
    pub(super) fn takes<T: JsonSchema>(mut self) -> Self {
        self.input.body = Body::Json {
            schema: SchemaGenerator::subschema_for::<T>,
            content_type: "application/json",
            limit: MAX_SPEC_BYTES,
            optional: false,
        };
        self
    }

    /// Takes a merge patch (RFC 7396).
    pub(super) fn takes_patch<T: JsonSchema>(mut self) -> Self {
        self.input.body = Body::Json {
            schema: SchemaGenerator::subschema_for::<T>,
            content_type: "application/merge-patch+json",
            limit: MAX_SPEC_BYTES,
            optional: false,
        };
        self
    }

    /// Nothing at all will do, too.
    pub(super) fn or_nothing(mut self) -> Self {
        if let Body::Json { optional, .. } = &mut self.input.body {
            *optional = true;
        }
        self
    }

    /// Takes so many bytes of JSON.
    pub(super) fn up_to(mut self, bytes: usize) -> Self {
        if let Body::Json { limit, .. } = &mut self.input.body {
            *limit = bytes;
        }
        self
    }

    /// Takes anything, and does not look at it.
    pub(super) fn ignores_body(mut self, limit: usize) -> Self {
        self.input.body = Body::Ignored { limit };
        self
    }

    pub(super) fn answers<T: JsonSchema>(mut self, status: StatusCode) -> Self {
        self.answer.status = status;
        self.answer.schema = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// Answers with a stream of these.
    pub(super) fn streams<T: JsonSchema>(mut self, content_type: &'static str) -> Self {
        self.answer.content_type = content_type;
        self.answers::<T>(StatusCode::OK)
    }

    /// With an `ETag`.
    pub(super) fn tagged(mut self) -> Self {
        self.answer.tagged = true;
        self
    }

    pub(super) fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

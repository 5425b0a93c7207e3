//! The router, generated from the table of operations.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, path::RawPathParams, rejection::RawPathParamsRejection},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{MethodFilter, on},
};
use tokio::time::timeout;

use super::{
    Api,
    access::{Access, admit, token, while_valid},
    call::Call,
    error::ApiError,
    operation::Operation,
    table::operations,
};

impl Api {
    /// The whole API for one listener.
    pub fn router(&self, access: Access) -> Router {
        self.routes(access).fallback(unknown_path)
    }

    /// Only the paths of the API, to be merged into another router.
    pub fn routes(&self, access: Access) -> Router {
        let router = operations().into_iter().fold(Router::new(), |router, operation| {
            let (api, operation) = (self.clone(), Arc::new(operation));
            let path = operation.path;
            let filter = filter(&operation.method);
            let handler = move |segments: Result<RawPathParams, RawPathParamsRejection>, request: Request| {
                answer(api, access, operation, segments, request)
            };
            router.route(path, on(filter, handler))
        });
        router.method_not_allowed_fallback(wrong_method)
    }
}

fn filter(method: &Method) -> MethodFilter {
    match *method {
        Method::POST => MethodFilter::POST,
        Method::PUT => MethodFilter::PUT,
        Method::PATCH => MethodFilter::PATCH,
        Method::DELETE => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    }
}

async fn answer(
    api: Api,
    access: Access,
    operation: Arc<Operation>,
    segments: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
) -> Response {
    let handled = async {
        let segments =
            segments.map_err(|_| ApiError::bad_request("the percent-encoded path is not UTF-8"))?;
        let (parts, body) = request.into_parts();
        let caller = admit(&api, access, operation.needs, &parts.headers).await?;
        let token = operation.needs.and_then(|_| token(access, &parts.headers));
        let call = Call::read(api.clone(), caller, &operation.input, &segments, parts, body).await?;
        let response = (operation.handler)(call).await?;
        Ok::<_, ApiError>(match token {
            Some(token) => while_valid(&api, token, response),
            None => response,
        })
    };
    match timeout(operation.patience, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(_) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "the request was not answered within {} s: the store is slow, or the request was incomplete",
                operation.patience.as_secs()
            ),
        )
        .retry_after(5)
        .into_response(),
    }
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::not_found(format!(
        "no such path: {}; /v1/openapi.json describes this API",
        request.uri().path()
    ))
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "{} is not allowed on {}: /v1/openapi.json describes this API",
            request.method(),
            request.uri().path()
        ),
    )
}

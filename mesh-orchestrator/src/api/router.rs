//! The router, generated from the table of operations.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Router,
    extract::{Request, path::RawPathParams, rejection::RawPathParamsRejection},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{MethodFilter, any, on},
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

    /// Only the logs of tasks, for the managers of a node that is a worker.
    pub fn log_routes(&self) -> Router {
        self.some_routes(Access::Trusted, |operation| operation.path.ends_with("/logs"))
            .fallback(unknown_path)
    }

    /// The paths of the API on a worker, which does not know the cluster: all answer where to ask instead.
    pub fn elsewhere(managers: &str) -> Router {
        let text = format!(
            "this node is not a manager; workers can't be used to view or change the cluster's state: run the command \
             on a manager ({managers})"
        );
        let paths: BTreeSet<_> = operations().into_iter().map(|operation| operation.path).collect();
        paths.into_iter().fold(Router::new(), |router, path| {
            let text = text.clone();
            router.route(
                path,
                any(move || async { ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text) }),
            )
        })
    }

    /// Only the paths of the API, to be merged into another router.
    pub fn routes(&self, access: Access) -> Router {
        self.some_routes(access, |_| true)
    }

    fn some_routes(&self, access: Access, which: impl Fn(&Operation) -> bool) -> Router {
        let wanted = operations().into_iter().filter(which);
        let router = wanted.fold(Router::new(), |router, operation| {
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

// Without `validatorUrl: null` the page would ask a server on the internet to judge the document.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null });

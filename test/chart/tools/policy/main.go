// Policy asks ValidatingAdmissionPolicies what they say of updates of nodes, with the API server's own code and no API server.
//
//	policy MANIFEST <REQUESTS
//
// MANIFEST is YAML with policies among other objects. REQUESTS is a JSON list of Request; the answer is one of Answer.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	celgo "github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	policyv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
)

// oldest is the Kubernetes of Chart.yaml's kubeVersion: what later ones have added to CEL is not known to it.
var oldest = version.MajorMinor(1, 30)

// Request is what somebody wants to make of a node. Without Before it is created, without After deleted.
type Request struct {
	User        string              `json:"user"`
	Extra       map[string][]string `json:"extra"`
	Subresource string              `json:"subresource"`
	Before      *corev1.Node        `json:"before"`
	After       *corev1.Node        `json:"after"`
}

// Answer is by how many policies a request was judged, and why they refuse it.
type Answer struct {
	Judged  int      `json:"judged"`
	Refused []string `json:"refused"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "policy:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("usage: policy MANIFEST <REQUESTS")
	}
	manifest, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	policies, err := read(manifest)
	if err != nil {
		return fmt.Errorf("%s: %w", os.Args[1], err)
	}
	var all []*compiled
	for _, policy := range policies {
		one, err := compile(policy)
		if err != nil {
			return fmt.Errorf("%s: %w", policy.Name, err)
		}
		all = append(all, one)
	}
	var requests []Request
	if err := json.NewDecoder(os.Stdin).Decode(&requests); err != nil {
		return fmt.Errorf("requests: %w", err)
	}
	answers := make([]Answer, len(requests))
	for i, request := range requests {
		answers[i] = ask(all, request)
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

// read finds the policies among a manifest's objects.
func read(manifest []byte) ([]*policyv1.ValidatingAdmissionPolicy, error) {
	var found []*policyv1.ValidatingAdmissionPolicy
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		var raw runtime.RawExtension
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, err
		}
		var policy policyv1.ValidatingAdmissionPolicy
		if err := json.Unmarshal(raw.Raw, &policy); err != nil || policy.Kind != "ValidatingAdmissionPolicy" {
			continue
		}
		found = append(found, &policy)
	}
}

// expression is one of CEL: what the API server's compiler wants to know of it.
type expression struct {
	name, text string
	result     *celgo.Type
}

func (e expression) GetName() string            { return e.name }
func (e expression) GetExpression() string      { return e.text }
func (e expression) ReturnTypes() []*celgo.Type { return []*celgo.Type{e.result} }

// compiled is a policy that can be asked.
type compiled struct {
	conditions, validations, messages cel.ConditionEvaluator
}

// compile does for a policy what the API server does, and refuses expressions that do not compile, which it would only
// refuse in each request.
func compile(policy *policyv1.ValidatingAdmissionPolicy) (*compiled, error) {
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(oldest))
	if err != nil {
		return nil, err
	}
	declared := cel.OptionalVariableDeclarations{}
	var failures []error
	check := func(e expression) cel.ExpressionAccessor {
		if failure := compiler.CompileCELExpression(e, declared, environment.NewExpressions).Error; failure != nil {
			failures = append(failures, fmt.Errorf("%s: %s", e.name, failure.Detail))
		}
		return e
	}
	for _, variable := range policy.Spec.Variables {
		e := expression{variable.Name, variable.Expression, celgo.AnyType}
		check(e)
		compiler.CompileAndStoreVariable(e, declared, environment.NewExpressions)
	}
	var conditions, validations, messages []cel.ExpressionAccessor
	for _, condition := range policy.Spec.MatchConditions {
		conditions = append(conditions, check(expression{condition.Name, condition.Expression, celgo.BoolType}))
	}
	for i, validation := range policy.Spec.Validations {
		validations = append(validations, check(expression{fmt.Sprintf("validation %d", i), validation.Expression, celgo.BoolType}))
		message := validation.MessageExpression
		if message == "" {
			message = strconv.Quote(validation.Message)
		}
		messages = append(messages, check(expression{fmt.Sprintf("message of validation %d", i), message, celgo.StringType}))
	}
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	evaluator := func(expressions []cel.ExpressionAccessor) cel.ConditionEvaluator {
		return compiler.CompileCondition(expressions, declared, environment.NewExpressions)
	}
	return &compiled{evaluator(conditions), evaluator(validations), evaluator(messages)}, nil
}

// judge says whether the policy is about a request, and why it refuses it; an error refuses it too.
func (c *compiled) judge(attributes *admission.VersionedAttributes) (judged bool, refused []string) {
	ctx := context.Background()
	request := cel.CreateAdmissionRequest(attributes.Attributes, metav1.GroupVersionResource(attributes.GetResource()), metav1.GroupVersionKind(attributes.VersionedKind))
	bindings := cel.OptionalVariableBindings{}
	conditions, _, err := c.conditions.ForInput(ctx, attributes, request, bindings, nil, celconfig.RuntimeCELCostBudgetMatchConditions)
	if err != nil {
		return true, []string{err.Error()}
	}
	for _, condition := range conditions {
		if condition.Error != nil {
			return true, []string{condition.Error.Error()}
		}
		if condition.EvalResult != types.True {
			return false, nil
		}
	}
	validations, left, err := c.validations.ForInput(ctx, attributes, request, bindings, nil, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return true, []string{err.Error()}
	}
	messages, _, err := c.messages.ForInput(ctx, attributes, request, bindings, nil, left)
	if err != nil {
		return true, []string{err.Error()}
	}
	for i, validation := range validations {
		switch {
		case validation.Error != nil:
			refused = append(refused, validation.Error.Error())
		case validation.EvalResult == types.True:
		case messages[i].Error != nil:
			refused = append(refused, messages[i].Error.Error())
		default:
			refused = append(refused, fmt.Sprint(messages[i].EvalResult.Value()))
		}
	}
	return true, refused
}

// ask has each policy judge a request within the API server's budget.
func ask(policies []*compiled, request Request) Answer {
	var before, after runtime.Object
	operation := admission.Update
	switch {
	case request.Before == nil:
		operation, after = admission.Create, request.After
	case request.After == nil:
		operation, before = admission.Delete, request.Before
	default:
		before, after = request.Before, request.After
	}
	name := request.Before
	if name == nil {
		name = request.After
	}
	kind := corev1.SchemeGroupVersion.WithKind("Node")
	resource := corev1.SchemeGroupVersion.WithResource("nodes")
	who := &user.DefaultInfo{Name: request.User, Extra: request.Extra}
	attributes := admission.NewAttributesRecord(after, before, kind, "", name.Name, resource, request.Subresource, operation, nil, false, who)
	versioned := &admission.VersionedAttributes{
		Attributes: attributes, VersionedKind: kind,
		VersionedOldObject: admission.NewLazyObject(before), VersionedObject: admission.NewLazyObject(after),
	}
	answer := Answer{Refused: []string{}}
	for _, policy := range policies {
		judged, refused := policy.judge(versioned)
		if judged {
			answer.Judged++
		}
		answer.Refused = append(answer.Refused, refused...)
	}
	return answer
}
